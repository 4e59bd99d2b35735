"""Calibration: how the label of a crop follows from what is stored, as fitted to the annotator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Calibration"]

_RULE = "log-linear"


@dataclass(frozen=True)
class Calibration:
    """How much the map and the whole image count in the label of a crop, by its area.

    The logits of a crop are ``a(s)`` times those pooled from the map, plus ``b(s)`` times those of the whole image.
    Both are polynomials of the logarithm of ``s``, the share of the image's area that the crop shows. A small crop is
    mostly what its cells say, and a large one mostly what the whole image is; their sum also says how sure the label
    is. ``annotate`` fits both to the annotator's own view of a few hundred random crops.

    Attributes:
        map_weights: Coefficients of ``a``: of 1, ``log s``, ``(log s)^2``, ...
        image_weights: Coefficients of ``b``.
        smallest_area: Of the crops that it was fitted on; a smaller one counts as this.
        fit: What was measured where it was fitted: numbers by name.

    Raises:
        ValueError: If a coefficient is not finite, or the smallest area is none.

    Example:
        >>> Calibration((0.5, -0.2), (0.5, 0.2), 0.08).weights(1.0)
        (0.5, 0.5)
    """

    map_weights: tuple[float, ...]
    image_weights: tuple[float, ...]
    smallest_area: float
    fit: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("map_weights", "image_weights"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} of a calibration are finite numbers, got {values}.")
        if len(self.map_weights) != len(self.image_weights):
            raise ValueError(
                f"A calibration has as many map_weights as image_weights, got {self.map_weights} and "
                f"{self.image_weights}."
            )
        if not 0 < self.smallest_area <= 1:
            raise ValueError(f"smallest_area is a share of an image's area, above 0 to 1, got {self.smallest_area!r}.")

    def __hash__(self) -> int:
        return hash((self.map_weights, self.image_weights, self.smallest_area))

    def weights(self, area: float) -> tuple[float, float]:
        """How much the map and the whole image count for a crop of a share ``area`` of the image."""
        log_area = math.log(min(max(area, self.smallest_area), 1.0))
        powers = [log_area**power for power in range(len(self.map_weights))]
        return (
            sum(weight * power for weight, power in zip(self.map_weights, powers, strict=True)),
            sum(weight * power for weight, power in zip(self.image_weights, powers, strict=True)),
        )

    def as_dict(self) -> dict[str, Any]:
        """What a store's header keeps of it."""
        values = asdict(self)
        return {
            "rule": _RULE,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `as_dict` gave.

        Raises:
            ValueError: If it is of a rule that this release does not know, or incomplete.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a calibration is a map, got {type(values).__name__}")
        if values.get("rule") != _RULE:
            raise ValueError(
                f"its labels were calibrated for the rule {values.get('rule')!r}, and this release of torchrelabel "
                f"knows {_RULE!r}; update torchrelabel"
            )
        try:
            return cls(
                tuple(values["map_weights"]),
                tuple(values["image_weights"]),
                float(values["smallest_area"]),
                values.get("fit"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"its calibration is incomplete ({type(error).__name__}: {error})") from None
