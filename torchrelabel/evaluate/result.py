"""Evaluation: everything that was measured of one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """What ``torchrelabel evaluate`` found of one model.

    Attributes:
        classifier: The model, its weights, and how it was shown images.
        values: The measures, fractions from 0 to 1: ``values["top1"]``; docs/evaluating.md names and defines them.
            Curves and tables are lists and dictionaries.
        images: By measure, over how many images it was taken.
        left_out: By measure, why it was not taken though it was asked for.
        unreadable: By data set, images that could not be read or have no class, with the reason.
        not_numbers: By data set, images whose scores were no numbers. They count as wrong.
        notes: What else is worth knowing.
    """

    classifier: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    not_numbers: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, measure: str) -> Any:
        """The value of a measure.

        Raises:
            KeyError: If it was not taken, saying why where it was asked for.
        """
        if measure not in self.values:
            raise KeyError(f"{measure}: {self.left_out.get(measure, 'was not asked for')}")
        return self.values[measure]

    @property
    def losses(self) -> bool:
        """Whether images were lost: not read, of no class, or with scores that are no numbers."""
        return any(self.unreadable.values()) or any(self.not_numbers.values())

    def put(self, measure: str, value: float, images: int) -> None:
        """Note a measure with the number of images that it was taken over."""
        self.values[measure] = value
        self.images[measure] = images

    def figures(self) -> dict[str, Any]:
        """Everything as plain values, for JSON: the measures first, each under its name."""
        return {
            **self.values,
            **self.classifier,
            "images": self.images,
            "left_out": self.left_out,
            "unreadable": self.unreadable,
            "not_numbers": self.not_numbers,
            "notes": self.notes,
        }
