"""PageReader: LMDB's pages, read one by one and checked, for walks through a file that nobody writes.

LMDB itself trusts its pages, and ends the process where one is damaged. Finding a key takes it one page of each level;
who walks through all keys comes by every damaged page there is.

Source: LMDB 0.9, mdb.c (MDB_page, MDB_node, MDB_meta, MDB_db).
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

_PAGE = struct.Struct("<QHHHH")  # its number, padding, flags, end of the pointers, begin of the nodes
_NODE = struct.Struct("<4H")  # low and high half of a size or page number, flags or its highest part, length of the key
_OVERFLOW = struct.Struct("<QHHI")  # number of the page, padding, flags, number of pages
_NUMBER = struct.Struct("<Q")
_META = struct.Struct("<2I2Q")  # magic, version, address, size of the map
_DATABASE = struct.Struct("<I2H5Q")  # size of a page, flags, depth, pages of three kinds, entries, root
_LAST = struct.Struct("<2Q")  # last page, transaction

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_IS_BRANCH, _IS_LEAF, _IS_OVERFLOW = 0x01, 0x02, 0x04
_IN_OVERFLOW = 0x01
_NO_PAGE = 2**64 - 1
_DEEPEST = 32
_LONGEST_KEY = 511
_SMALLEST_META = 4096

Read = Callable[[int, int], bytes]


class DamagedPage(ValueError):
    """A page is not what LMDB would have written."""


class PageReader:
    """The unnamed database of an LMDB file, as of its newest commit.

    Args:
        read: Gives so many bytes from so many on, fewer at the end of the file.

    Raises:
        DamagedPage: If the file does not begin as LMDB's do.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        newest = -1
        front = read(_SMALLEST_META, 0)
        size = self._meta(front)[0]
        for content in (front, read(_SMALLEST_META, size)):
            page_size, depth, root, last, transaction = self._meta(content)
            if page_size != size:
                raise DamagedPage(f"its two front pages speak of pages of {size} and {page_size} bytes")
            if transaction > newest:
                newest, self._depth, self._root, self._last = transaction, depth, root, last
        self._size = size
        if self._depth > _DEEPEST:
            raise DamagedPage(f"its tree has {self._depth} levels, and LMDB's have at most {_DEEPEST}")

    @staticmethod
    def understands() -> bool:
        """Whether files of this machine have the layout that is read here."""
        return sys.byteorder == "little" and sys.maxsize > 2**32

    def walk(self, start: bytes, *, values: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys from ``start`` on, in order, with their values if wanted.

        Raises:
            DamagedPage: If a page on the way is damaged, or a key not in order.
        """
        if self._root == _NO_PAGE:
            return
        before = None
        for key, value in self._walk(self._root, 1, start, values):
            if before is not None and key <= before:
                raise DamagedPage(f"after the key {before[:60]!r} comes {key[:60]!r}, which is not in order")
            before = key
            yield key, value

    def places(self, start: bytes) -> Iterator[tuple[bytes, int, int]]:
        """Keys from ``start`` on, in order, with the offset in the file and the size of the value of each.

        Raises:
            DamagedPage: If a page on the way is damaged; pages of large values are not looked at.
        """
        if self._root != _NO_PAGE:
            yield from self._places(self._root, 1, start)

    def last_before(self, start: bytes) -> bytes | None:
        """The last key before ``start``, if there is one.

        Raises:
            DamagedPage: If a page on the way is damaged.
        """
        return None if self._root == _NO_PAGE else self._last_before(self._root, 1, start)

    def _walk(self, number: int, level: int, start: bytes, values: bool) -> Iterator[tuple[bytes, bytes]]:
        page, keys, nodes = self._page(number, level)
        if level < self._depth:
            first = max(bisect_right(keys, start, 1) - 1, 0)
            for offset in nodes[first:]:
                yield from self._walk(self._child(page, offset), level + 1, start, values)
            return
        first = bisect_left(keys, start)
        for key, offset in zip(keys[first:], nodes[first:], strict=True):
            yield key, self._value(page, offset) if values else b""

    def _places(self, number: int, level: int, start: bytes) -> Iterator[tuple[bytes, int, int]]:
        page, keys, nodes = self._page(number, level)
        if level < self._depth:
            for offset in nodes[max(bisect_right(keys, start, 1) - 1, 0) :]:
                yield from self._places(self._child(page, offset), level + 1, start)
            return
        first = bisect_left(keys, start)
        for key, offset in zip(keys[first:], nodes[first:], strict=True):
            begin, size, large = self._place(page, offset)
            yield key, begin if large else number * self._size + begin, size

    def _last_before(self, number: int, level: int, start: bytes) -> bytes | None:
        page, keys, nodes = self._page(number, level)
        if level == self._depth:
            place = bisect_left(keys, start)
            return keys[place - 1] if place else None
        for place in range(max(bisect_left(keys, start, 1) - 1, 0), -1, -1):
            found = self._last_before(self._child(page, nodes[place]), level + 1, start)
            if found is not None:
                return found
        return None

    def _page(self, number: int, level: int) -> tuple[bytes, list[bytes], tuple[int, ...]]:
        """A page of the tree, its keys, and where its nodes lie."""
        kind = _IS_LEAF if level == self._depth else _IS_BRANCH
        page = self._read(self._size, number * self._size) if 2 <= number <= self._last else b""
        if len(page) < self._size:
            raise DamagedPage(f"page {number} lies beyond the {self._last + 1} pages of the file")
        own, _, flags, lower, upper = _PAGE.unpack_from(page)
        if own != number or flags & 0x2F != kind:
            raise DamagedPage(f"page {number} says that it is page {own} with flags {flags:#06x}, wanted {kind:#06x}")
        if not _PAGE.size < lower <= upper <= self._size or lower % 2:
            raise DamagedPage(f"page {number} has its pointers up to byte {lower} and its nodes from {upper} on")
        nodes = struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size)
        if min(nodes) < upper or max(nodes) > self._size - _NODE.size:
            raise DamagedPage(
                f"page {number} has nodes at bytes {min(nodes)} to {max(nodes)}, and they begin at {upper}"
            )
        lengths = [page[offset + 6] | page[offset + 7] << 8 for offset in nodes]
        # The first key of a branch stands for all that are lower.
        shortest = min(lengths if level == self._depth else lengths[1:], default=1)
        ends = [offset + _NODE.size + length for offset, length in zip(nodes, lengths, strict=True)]
        if not shortest or max(lengths) > _LONGEST_KEY or max(ends) > self._size:
            raise DamagedPage(f"page {number} has keys of {shortest} to {max(lengths)} bytes, up to byte {max(ends)}")
        keys = [page[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        return page, keys, nodes

    @staticmethod
    def _child(page: bytes, offset: int) -> int:
        low, high, highest, _ = _NODE.unpack_from(page, offset)
        return int(low | high << 16 | highest << 32)

    def _place(self, page: bytes, offset: int) -> tuple[int, int, bool]:
        """Where the value of a node begins and its size: in its page, or if it is large, in the file."""
        low, high, flags, length = _NODE.unpack_from(page, offset)
        size, begin = low | high << 16, offset + _NODE.size + length
        if not flags & _IN_OVERFLOW:
            if flags or begin + size > self._size:
                raise DamagedPage(f"a value of {size} bytes at byte {offset} of a page, with flags {flags:#06x}")
            return begin, size, False
        if begin + _NUMBER.size > self._size:
            raise DamagedPage(f"a page's number at byte {begin} of a page")
        (number,) = _NUMBER.unpack_from(page, begin)
        if not 2 <= number <= self._last or number + (_PAGE.size + size - 1) // self._size > self._last:
            raise DamagedPage(f"a value of {size} bytes lies beyond the {self._last + 1} pages of the file")
        return number * self._size + _PAGE.size, size, True

    def _value(self, page: bytes, offset: int) -> bytes:
        begin, size, large = self._place(page, offset)
        if not large:
            return page[begin : begin + size]
        value = self._read(_PAGE.size + size, begin - _PAGE.size)
        if len(value) < _PAGE.size + size:
            raise DamagedPage(f"a value of {size} bytes lies beyond the end of the file")
        own, _, flags, pages = _OVERFLOW.unpack_from(value)
        if own * self._size != begin - _PAGE.size or flags & 0x2F != _IS_OVERFLOW or pages * self._size < len(value):
            raise DamagedPage(
                f"a large value's page says that it is page {own} with flags {flags:#06x} of {pages} pages"
            )
        return value[_PAGE.size :]

    @staticmethod
    def _meta(content: bytes) -> tuple[int, int, int, int, int]:
        """Size of a page, depth, root, last page and transaction, as a front page has them."""
        if len(content) < _SMALLEST_META:
            raise DamagedPage(f"a front page has {len(content)} bytes")
        magic, version, _, _ = _META.unpack_from(content, _PAGE.size)
        if (magic, version) != (_MAGIC, _VERSION):
            raise DamagedPage(f"a front page has the signature {magic:#x} and version {version}")
        free = _PAGE.size + _META.size
        main = free + _DATABASE.size
        size = _DATABASE.unpack_from(content, free)[0]
        if not 512 <= size <= 65536 or size & (size - 1):
            raise DamagedPage(f"a front page speaks of pages of {size} bytes")
        _, _, depth, *_, root = _DATABASE.unpack_from(content, main)
        last, transaction = _LAST.unpack_from(content, main + _DATABASE.size)
        return size, depth, root, last, transaction
