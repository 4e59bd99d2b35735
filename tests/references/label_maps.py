"""Label maps to test with, and the dense maps that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from torchrelabel import LabelMap, ViewBox
from torchrelabel.calibration import Calibration

GRID = (7, 5)
CANVAS = (17, 11)


def make_label_map(
    *,
    grid: tuple[int, int] = GRID,
    top_k: int = 3,
    num_classes: int = 10,
    canvas_size: tuple[int, int] = CANVAS,
    view_box: ViewBox = ViewBox(),
    score_kind: str = "logit",
    residual: bool = True,
    calibration: Calibration | None = None,
    dtype: torch.dtype = torch.float32,
    classes_dtype: torch.dtype = torch.int64,
    seed: int = 0,
) -> LabelMap:
    """A map of random scores and different classes in each cell, with scores of the whole image where calibrated."""
    rng = np.random.default_rng(seed)
    if score_kind == "logit":
        scores, left = rng.normal(0, 3, (top_k, *grid)), rng.normal(0, 3, grid)
    else:
        shares = rng.dirichlet(np.ones(top_k + 1), grid)
        scores, left = np.moveaxis(shares, -1, 0)[:-1], shares[..., -1]
    classes = np.argsort(rng.random((num_classes, *grid)), axis=0)[:top_k]
    return LabelMap(
        torch.tensor(np.ascontiguousarray(scores), dtype=dtype),
        torch.tensor(np.ascontiguousarray(classes), dtype=classes_dtype),
        num_classes=num_classes,
        canvas_size=canvas_size,
        residual=torch.tensor(left, dtype=dtype) if residual else None,
        view_box=view_box,
        score_kind=score_kind,
        image_scores=None if calibration is None else torch.tensor(rng.normal(0, 2, num_classes), dtype=dtype),
        calibration=calibration,
    )


def dense_by_loops(label_map: LabelMap, fill: str = "zero") -> np.ndarray:
    """The dense map ``[C, h, w]``, cell by cell and class by class."""
    k, h, w = label_map.shape
    dense = np.zeros((label_map.num_classes, h, w))
    if fill == "auto":
        fill = "zero" if label_map.calibration is None else "image"
    for i in range(h):
        for j in range(w):
            if fill == "residual" and k < label_map.num_classes:
                left = float(label_map.residual[i, j])
                others = label_map.num_classes - k
                dense[:, i, j] = left / others if label_map.score_kind == "probability" else left - np.log(others)
            if fill == "image" and k < label_map.num_classes:
                kept = set(label_map.classes[:, i, j].tolist())
                others = [c for c in range(label_map.num_classes) if c not in kept]
                of_image = label_map.image_scores.double().numpy()[others]
                # They have the residual together, and among each other the proportions of the whole image.
                dense[others, i, j] = of_image + float(label_map.residual[i, j]) - np.log(np.exp(of_image).sum())
            for c in range(k):
                dense[int(label_map.classes[c, i, j]), i, j] = float(label_map.scores[c, i, j])
    return dense


@st.composite
def label_maps(draw: Any, **fixed: Any) -> LabelMap:
    """Maps of any grid, number of classes, kind and type."""
    num_classes = draw(st.integers(1, 12))
    settings: dict[str, Any] = {
        "grid": (draw(st.integers(1, 9)), draw(st.integers(1, 13))),
        "top_k": draw(st.integers(1, num_classes)),
        "num_classes": num_classes,
        "score_kind": draw(st.sampled_from(["logit", "probability"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16])),
        "classes_dtype": draw(st.sampled_from([torch.int16, torch.int32, torch.int64, torch.uint8])),
        "view_box": draw(view_boxes()),
        "seed": draw(st.integers(0, 2**16)),
    }
    return make_label_map(**{**settings, **fixed})


@st.composite
def view_boxes(draw: Any) -> ViewBox:
    """Views of a part of the image, or reaching outside, flipped or not."""
    coordinates = st.integers(-40, 140).map(lambda hundredth: hundredth / 100)
    x1, x2 = draw(st.tuples(coordinates, coordinates).filter(lambda ends: ends[0] != ends[1]))
    y1, y2 = draw(st.tuples(coordinates, coordinates).filter(lambda ends: ends[0] != ends[1]))
    return ViewBox(x1, y1, x2, y2)
