"""The demo: real handwritten digits in crowded scenes, learnt from two kinds of labels."""

from torchrelabel.demo.run import demo as demo

__all__ = ["demo"]
