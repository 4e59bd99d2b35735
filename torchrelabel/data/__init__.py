"""How a LabelMapDataset finds, loads and follows its images."""
