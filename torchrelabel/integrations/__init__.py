"""Label maps in the training loops of other libraries."""
