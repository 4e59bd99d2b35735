"""Images of folders, Parquet files and tar files, here or elsewhere, in units that one task of a cluster reads."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from torchrelabel.annotate.images import ImagesFound, find_images, more_extensions
from torchrelabel.data.keys import image_field, shard_key
from torchrelabel.remote import filesystem_of, is_url

# As timm's reader of WebDataset shards chooses.
_IMAGE_FIELDS = "jpg;png;webp"
# So many images are read by one task, where they are no files of their own: some seconds' work, to be done again if
# its node dies.
_IMAGES_OF_UNIT = 512
_FETCHED_AT_ONCE = 16
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class ImagesInMemory(ImagesFound):
    """Images whose files were read.

    Attributes:
        files: Their bytes by key, or why there are none.
    """

    files: Mapping[str, bytes | OSError] = field(kw_only=True)

    @classmethod
    def of(cls, files: Mapping[str, bytes | OSError]) -> ImagesInMemory:
        """Images of which nothing else is known."""
        return cls(Path(), sorted(files), None, [], files=files)

    def open(self, key: str) -> IO[bytes]:
        """Open an image."""
        content = self.files[key]
        if isinstance(content, OSError):
            raise content
        return io.BytesIO(content)


@dataclass(frozen=True)
class ImagesElsewhere(ImagesFound):
    """The images of a folder on an object store.

    Attributes:
        url: The folder.
    """

    url: str = field(kw_only=True)

    def open(self, key: str) -> IO[bytes]:
        """Read an image."""
        return self.fetched([key]).open(key)

    def fetched(self, keys: Sequence[str]) -> ImagesInMemory:
        """Read images, several at once, since each waits for the network."""
        filesystem, folder = filesystem_of(self.url)

        def fetch(key: str) -> bytes | OSError:
            try:
                content: bytes = filesystem.cat_file(f"{folder.rstrip('/')}/{key}")
            except OSError as error:
                return error
            return content

        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            return ImagesInMemory.of(dict(zip(keys, pool.map(fetch, keys), strict=True)))


class KeysDone:
    """The keys that a store holds, in 16 bytes each, for tasks to leave them out.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        digests = b"".join(map(self._digest, keys))
        self._digests = np.sort(np.frombuffer(digests, f"V{_DIGEST_BYTES}").view(f"S{_DIGEST_BYTES}"))

    def __contains__(self, key: str) -> bool:
        digest = np.frombuffer(self._digest(key), f"S{_DIGEST_BYTES}")
        place = int(np.searchsorted(self._digests, digest)[0])
        return place < len(self._digests) and bool(self._digests[place] == digest[0])

    def __len__(self) -> int:
        return len(self._digests)

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).digest()


# Keys of images that are to be annotated, of those that are done, and what opens the former.
Batch = tuple[list[str], list[str], ImagesFound]


class Unit(Protocol):
    """What one task reads."""

    def batches(self, size: int, done: KeysDone) -> Iterator[Batch]:
        """Yield at most ``size`` images after another, in the same batches every time."""
        ...


@dataclass(frozen=True)
class Files:
    """Some images of a folder, all of them to be annotated.

    Attributes:
        found: The folder.
        keys: The images.
    """

    found: ImagesFound
    keys: Sequence[str]

    def batches(self, size: int, done: KeysDone) -> Iterator[Batch]:
        """As `Unit` says."""
        for start in range(0, len(self.keys), size):
            keys = list(self.keys[start : start + size])
            yield keys, [], self.found.fetched(keys) if isinstance(self.found, ImagesElsewhere) else self.found


@dataclass(frozen=True)
class RowGroup:
    """The images of one row group of a Parquet file.

    Attributes:
        url: The file.
        number: Of the row group.
        image_column: Bytes of images; or structs of ``bytes`` and ``path``, as Hugging Face writes them.
        key_column: Keys; the images' paths if None.
    """

    url: str
    number: int
    image_column: str
    key_column: str | None

    def batches(self, size: int, done: KeysDone) -> Iterator[Batch]:
        """As `Unit` says; bytes of images are read only if one of them is to be annotated."""
        import pyarrow.parquet

        filesystem, path = filesystem_of(self.url)
        with filesystem.open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
            key_path = (self.key_column or f"{self.image_column}.path").split(".")
            keys = _column(table.read_row_group(self.number, columns=[".".join(key_path)]), key_path).to_pylist()
            if any(not isinstance(key, str) for key in keys):
                raise ValueError(
                    f"{self.url}: the keys of images are strings, and column {'.'.join(key_path)} of row group "
                    f"{self.number} holds others. Name the column of their names: --key-column NAME."
                )
            old = [key for key in keys if key in done]
            if len(old) == len(keys):
                yield [], old, ImagesInMemory.of({})
                return
            image_path = _image_path(table.schema_arrow, self.image_column)
            images = _column(table.read_row_group(self.number, columns=[".".join(image_path)]), image_path)
            todo = [(key, image) for key, image in zip(keys, images, strict=True) if key not in done]
            for start in range(0, len(todo), size):
                some = [(key, image.as_py() or b"") for key, image in todo[start : start + size]]
                yield [key for key, _ in some], old, ImagesInMemory.of(dict(some))
                old = []


@dataclass(frozen=True)
class Tar:
    """The images of a tar file, read from its first byte to its last.

    Attributes:
        url: The file.
        samples: Whether it is a shard as WebDataset writes them: files that share a name up to its first dot are one
            sample, with one image.
    """

    url: str
    samples: bool

    def batches(self, size: int, done: KeysDone) -> Iterator[Batch]:
        """As `Unit` says."""
        some: list[tuple[str, bytes]] = []
        old: list[str] = []
        for key, content in self._images():
            if key in done:
                old.append(key)
                continue
            some.append((key, content))
            if len(some) == size:
                yield [key for key, _ in some], old, ImagesInMemory.of(dict(some))
                some, old = [], []
        if some or old:
            yield [key for key, _ in some], old, ImagesInMemory.of(dict(some))

    def _images(self) -> Iterator[tuple[str, bytes]]:
        if not self.samples:
            extensions = (*IMG_EXTENSIONS, *more_extensions())
            for name, content in self._members():
                if name.lower().endswith(extensions):
                    yield name.removeprefix("./").lstrip("/"), content
            return
        stem, fields = "", dict[str, bytes]()
        for name, content in self._members():
            folder, slash, file = name.rpartition("/")
            start, dot, extension = file.partition(".")
            if not start or not dot:
                continue
            if folder + slash + start != stem:
                yield from _image_of(stem, fields)
                stem, fields = folder + slash + start, {}
            fields.setdefault(extension.lower(), content)
        yield from _image_of(stem, fields)

    def _members(self) -> Iterator[tuple[str, bytes]]:
        filesystem, path = filesystem_of(self.url)
        try:
            with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is not None:
                        yield member.name, content.read()
        except tarfile.TarError as error:
            raise OSError(
                f"{self.url} cannot be read as a tar file without compression: {error}. Unpack it, or copy it again."
            ) from error


@dataclass(frozen=True)
class Source:
    """Where images are.

    Attributes:
        found: The folder; without keys for files that hold many images, whose keys nobody knows yet.
        units: Such files.
    """

    found: ImagesFound
    units: list[Unit]

    def todo(self, keys: Sequence[str], batch_size: int, tasks: int) -> list[Unit]:
        """The units of a run.

        Args:
            keys: Images of the folder that are to be annotated.
            batch_size: Images in a batch; but for the last one, units of a folder hold whole batches.
            tasks: How many units there are at least, if that can be.
        """
        if self.units:
            return self.units
        batches = max(1, min(_IMAGES_OF_UNIT // batch_size, len(keys) // (batch_size * tasks)))
        size = batches * batch_size
        found = replace(self.found, keys=[])
        return [Files(found, keys[start : start + size]) for start in range(0, len(keys), size)]


def find_source(
    data: str, skip: Iterable[Path] = (), *, dataset: str | None, image_column: str, key_column: str | None
) -> Source:
    """Find images.

    Args:
        data: A folder, a ``.parquet`` or ``.tar`` file, or a folder of such; here, or by the URL of an object store.
        skip: Folders to leave out.
        dataset: ``"wds/"`` if tar files are shards as WebDataset writes them.
        image_column: Of Parquet files.
        key_column: Of Parquet files.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If there is no image, the columns are missing, or ``dataset`` is another one.
        ImportError: If fsspec or pyarrow is missing.
    """
    if dataset is not None and not dataset.lower().startswith("wds/"):
        raise ValueError(
            f"The Ray engine reads folders, Parquet and tar files, and dataset='wds/...', not {dataset!r}."
        )
    filesystem, root = filesystem_of(data)
    if not filesystem.exists(root):
        raise FileNotFoundError(f"There is no {data!r}. Check the path.")
    alone = not filesystem.isdir(root)
    if not alone and dataset is None:
        found = _find_elsewhere(data, filesystem, root) if is_url(data) else find_images(os.path.abspath(data), skip)
        # Whatever else lies beside them: an archive that a folder was unpacked from, a table of labels.
        if found.keys or not {".parquet", ".tar"} & found.left_out.keys():
            return Source(found, [])
    names = [root] if alone else sorted(filesystem.find(root))
    prefix = data.partition("://")[0] + "://" if is_url(data) else ""
    urls = [prefix + name.removeprefix(prefix) for name in names]
    units: list[Unit] = []
    if tables := [url for url in urls if url.endswith(".parquet") and dataset is None]:
        _check_columns(tables[0], image_column, key_column)
        units += [RowGroup(url, number, image_column, key_column) for url in tables for number in _row_groups(url)]
    else:
        units += [Tar(url, dataset is not None) for url in urls if url.endswith(".tar")]
    if not units:
        raise ValueError(f"{data!r} is no folder of images, and no .parquet or .tar file, and holds none.")
    return Source(ImagesFound(Path(data), [], None, []), units)


def _find_elsewhere(url: str, filesystem: Any, root: str) -> ImagesFound:
    """The images of a folder, by their extensions."""
    extensions = (*IMG_EXTENSIONS, *more_extensions())
    names = [posixpath.relpath(path, root) for path in filesystem.find(root)]
    keys = [name for name in names if name.lower().endswith(extensions)]
    left_out = Counter(posixpath.splitext(name)[1].lower() for name in set(names) - set(keys))
    folders = sorted({key.partition("/")[0] for key in keys if "/" in key})
    class_to_idx = {name: index for index, name in enumerate(folders)} or None
    return ImagesElsewhere(Path(url), sorted(keys), class_to_idx, [], left_out=left_out, url=url)


def _row_groups(url: str) -> range:
    import pyarrow.parquet

    filesystem, path = filesystem_of(url)
    with filesystem.open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
        return range(table.num_row_groups)


def _check_columns(url: str, image_column: str, key_column: str | None) -> None:
    """Refuse columns that are not there before anything is started."""
    import pyarrow.parquet

    filesystem, path = filesystem_of(url)
    with filesystem.open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
    if image_column not in schema.names or (key_column is not None and key_column not in schema.names):
        raise ValueError(
            f"{url} has the columns {', '.join(schema.names)}. Name those of images and of their names: --image-column "
            f"NAME --key-column NAME."
        )
    if key_column is None and len(_image_path(schema, image_column)) == 1:
        raise ValueError(
            f"Column {image_column!r} of {url} does not name its images. Say which does: --key-column NAME."
        )


def _image_path(schema: Any, image_column: str) -> list[str]:
    import pyarrow

    is_struct = pyarrow.types.is_struct(schema.field(image_column).type)
    return [image_column, "bytes"] if is_struct else [image_column]


def _column(table: Any, path: Sequence[str]) -> Any:
    """A column, or a field of the structs in one."""
    import pyarrow.compute

    column = table.column(path[0])
    return column if len(path) == 1 else pyarrow.compute.struct_field(column, path[1:])


def _image_of(stem: str, fields: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    if fields.keys() & set(_IMAGE_FIELDS.split(";")):
        name = image_field(fields, _IMAGE_FIELDS)
        yield shard_key(stem, name), fields[name]
