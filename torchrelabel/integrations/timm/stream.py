"""LabelMapStream: images that timm reads one after the other, out of WebDataset shards, with soft labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from timm.data.dataset import IterableImageDataset
from timm.data.readers import reader_wds
from torch.utils.data import Dataset

from torchrelabel.data.dataset import LabelMapDataset
from torchrelabel.data.keys import image_field, shard_key
from torchrelabel.integrations.timm.soft_targets import accept_soft_targets

__all__ = ["LabelMapStream"]

# Where an image carries its name from timm's reader to here.
_NAME = "torchrelabel_name"


class LabelMapStream(IterableImageDataset):
    """timm's dataset of WebDataset shards (``wds/...``), with the label of each image pooled from its label map.

    What :class:`~torchrelabel.LabelMapDataset` is to a dataset read by index. It stays a dataset of timm's, which
    ``timm.data.create_loader`` gives its transform; the one wrapped is left as it is. An image's key is its name in the
    shard, ``folder/name.jpg``, as ``torchrelabel annotate --dataset wds/...`` writes it.

    Args:
        dataset: As ``timm.data.create_dataset("wds/...")`` gives it, not yet iterated over.
        label_maps: As for :class:`~torchrelabel.LabelMapDataset`.
        key: A function from an image's name in its shard to its key in the store, where these differ.
        **options: As for :class:`~torchrelabel.LabelMapDataset`, such as ``pooling`` or ``missing``. No ``key_prefix``
            is found out here.

    Raises:
        TypeError, ValueError: As there, and if timm does not tell the names of the images.

    Example:
        >>> dataset = create_dataset("wds/imagenet", root="shards", split="train", is_training=True, batch_size=256)
        >>> loader = create_loader(LabelMapStream(dataset, "maps.lmdb"), (3, 224, 224), 256, is_training=True)
    """

    def __init__(
        self,
        dataset: Any,
        label_maps: str | os.PathLike[str] | Mapping[str, Any],
        *,
        key: Callable[[str], str] | None = None,
        **options: Any,
    ) -> None:
        reader = getattr(dataset, "reader", None)
        if not isinstance(dataset, IterableImageDataset) or not isinstance(reader, reader_wds.ReaderWds):
            raise TypeError(
                f"LabelMapStream wraps timm's dataset of WebDataset shards (wds/...), got {type(dataset).__name__} of "
                f"{type(reader).__name__}. Other readers of images one after the other do not tell their names; what "
                f"is read by index (a folder, a tar file, hfds/) goes into LabelMapDataset."
            )
        self.__dict__.update(dataset.__dict__)
        self._image = _CurrentImage(key, dict(reader.class_to_idx or {}))
        self._labels = LabelMapDataset(self._image, label_maps, key=self._image.key_of, **options)
        self.label_maps, self.num_classes = self._labels.label_maps, self._labels.num_classes
        _prepare_timm()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _prepare_timm()  # a spawned worker has a timm of its own

    def __iter__(self) -> Iterator[Any]:
        self._labels.transform = self.transform
        for image, target in self.reader:
            name = image.info.pop(_NAME, None)
            if name is None:
                raise TypeError(
                    "timm's reader did not tell the name of an image. Wrap the dataset before anything is read from it."
                )
            if self.target_transform is not None:
                target = self.target_transform(target)
            self._image.name, self._image.item = name, (image, target)
            yield self._labels[0]

    def __repr__(self) -> str:
        return f"LabelMapStream({len(self)} images of {type(self.reader).__name__}, {self.label_maps!r})"


class _CurrentImage(Dataset[Any]):
    """The image just read, as a dataset of one: what happens to it is LabelMapDataset's business."""

    name = ""
    item: Any = None

    def __init__(self, key: Callable[[str], str] | None, class_to_idx: dict[str, int]) -> None:
        self.key = key
        self.class_to_idx = class_to_idx

    def __len__(self) -> int:
        return int(self.item is not None)

    def __getitem__(self, index: int) -> Any:
        return self.item

    def key_of(self, index: int) -> str:
        return self.name if self.key is None else self.key(self.name)


_decode = reader_wds._decode


def _decode_with_name(sample: Mapping[str, Any], image_key: str = "jpg", *args: Any, **kwargs: Any) -> Any:
    """What timm's reader makes of a sample; it would drop the name."""
    decoded: Any = _decode(sample, image_key, *args, **kwargs)  # type: ignore[no-untyped-call, unused-ignore]
    if decoded is not None:
        decoded["jpg"].info[_NAME] = shard_key(sample["__key__"], image_field(sample, image_key))
    return decoded


def _prepare_timm() -> None:
    """Let timm's reader tell names, and its collates, mixers and losses take soft labels, in this process."""
    reader_wds._decode = _decode_with_name
    accept_soft_targets()
