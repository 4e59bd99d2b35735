"""ReLabel's published label maps of ImageNet, which cover whole images."""

from __future__ import annotations

import os

from torchrelabel.importers.run import Summary
from torchrelabel.importers.trees import TreeFormat, import_tree

RELABEL = TreeFormat("relabel", "EfficientNet-L2 (noisy student, JFT), 475 px, as published", "token-labeling", False)
_AXES = ("hw", "wh")


def import_relabel(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    data: str | os.PathLike[str] | None = None,
    suffix: str = ".JPEG",
    axes: str = "hw",
    num_classes: int = 1000,
    dtype: str = "float32",
    codec: str = "float16",
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Import ReLabel's maps: ``<source>/<wnid>/<stem>.pt``, a float tensor ``[2, 5, 15, 15]`` of logits and indices.

    The same call continues an import that was interrupted. A file that is damaged, or not what it should be, is listed
    and left out.

    Args:
        source: The extracted archive.
        output: The store; begun if it does not exist.
        data: Folder of the images, to learn their real names. None: an image is called as its map, with ``suffix``.
        suffix: Extension of the images, where ``data`` is None.
        axes: What the last two axes of a map are: ``"hw"`` for rows and columns, ``"wh"`` for columns and rows. It is
            documented nowhere; docs/importing.md says how to find out.
        num_classes: C.
        dtype: What the numbers of the files are, ``"float32"`` or ``"float16"``.
        codec: How records are stored, ``"float16"`` or ``"uint8"``.
        workers: Processes that read; as many as cores, at most 4, if None and there is much to read; 0 reads in this
            process.
        progress: Show progress and notes on stderr.

    Returns:
        What was done.

    Raises:
        FileNotFoundError, NotADirectoryError: If ``source`` or ``data`` is no folder.
        ValueError: If an argument is out of range, if ``source`` holds no such maps, or if none of them belongs to an
            image.
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreError: If the store cannot be written.
        TorchRelabelError: If a reading process dies.

    Source: https://github.com/naver-ai/relabel_imagenet, README and issue 8.
    """
    if axes not in _AXES:
        raise ValueError(f"axes must be one of {', '.join(_AXES)}, got {axes!r}.")
    return import_tree(
        RELABEL,
        source,
        output,
        data=data,
        suffix=suffix,
        num_classes=num_classes,
        dtype=dtype,
        codec=codec,
        workers=workers,
        progress=progress,
        axes=axes,
    )
