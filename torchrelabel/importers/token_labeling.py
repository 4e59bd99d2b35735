"""TokenLabeling's label maps, which cover the centre square of each image."""

from __future__ import annotations

import os

from torchrelabel.importers.run import Summary
from torchrelabel.importers.trees import TreeFormat, import_tree

TOKEN_LABELING = TreeFormat("token-labeling", "NFNet-F6, 576 px, as published", "relabel", True)


def import_token_labeling(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    data: str | os.PathLike[str] | None = None,
    assume_square: bool = False,
    crop_pct: float = 1.0,
    suffix: str = ".JPEG",
    num_classes: int = 1000,
    dtype: str = "float16",
    codec: str = "float16",
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Import TokenLabeling's maps: ``<source>/<wnid>/<stem>.pt``, a half tensor ``[2, 5, 18, 18]``.

    Their annotator saw each image after its short side was resized and a square was cut out of the centre. Which part
    of an image that is depends on the image's size, so ``data`` is needed, and the part is stored with each map: views
    are moved into it, and what they show beside it is not pooled.

    Args:
        source: The folder of maps.
        output: The store; begun if it does not exist.
        data: Folder of the images.
        assume_square: Take every image to be square instead, without ``data``.
        crop_pct: Side of the centre square as a fraction of the short side, ``--crop-pct`` of their generator; their
            README uses 1.
        suffix: Extension of the images, where ``data`` is None.
        num_classes: C.
        dtype: What the numbers of the files are, ``"float16"`` or ``"float32"``.
        codec: How records are stored, ``"float16"`` or ``"uint8"``.
        workers: As in `import_relabel`.
        progress: Show progress and notes on stderr.

    Returns:
        What was done.

    Raises:
        ValueError: If neither or both of ``data`` and ``assume_square`` are given; or as in `import_relabel`.
        OSError, TorchRelabelError: As in `import_relabel`.

    Source: https://github.com/zihangJiang/TokenLabeling, ``generate_label.py``, and timm 0.4.5,
    ``transforms_imagenet_eval``.
    """
    if (data is None) != assume_square:
        raise ValueError(
            "These maps cover the centre square of each image, so the sizes of the images are needed: give their "
            "folder (DATA), or --assume-square if all of them are square"
            + (", and not both." if assume_square else ".")
        )
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be more than 0 and at most 1, got {crop_pct}.")
    return import_tree(
        TOKEN_LABELING,
        source,
        output,
        data=data,
        suffix=suffix,
        num_classes=num_classes,
        dtype=dtype,
        codec=codec,
        workers=workers,
        progress=progress,
        crop_pct=crop_pct,
    )
