"""How good a classifier is, by the measures of ReLabel, CutMix and MILe, on the folders that are there."""

from torchrelabel.evaluate.classifier import Classifier as Classifier
from torchrelabel.evaluate.loading import load_classifier as load_classifier
from torchrelabel.evaluate.result import Evaluation as Evaluation
from torchrelabel.evaluate.run import evaluate as evaluate

__all__ = ["Classifier", "Evaluation", "evaluate", "load_classifier"]
