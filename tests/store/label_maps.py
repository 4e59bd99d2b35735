"""Label maps to put into stores, on grids that are never square."""

from contextlib import contextmanager

import lmdb
import numpy as np

from torchrelabel.store.layout import block_key, record_key, shard_file, unpack_location

ROWS, COLUMNS, TOP_K, CLASSES = 7, 5, 3, 20


def make_map(
    seed=0, *, rows=ROWS, columns=COLUMNS, top_k=TOP_K, num_classes=CLASSES, residual=False, low=-9.0, high=9.0
):
    """Random scores and classes ``[K, h, w]``, and a residual ``[h, w]`` or None."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(low, high, (top_k, rows, columns)), axis=0)
    classes = np.empty((top_k, rows, columns), np.int64)
    for row in range(rows):
        for column in range(columns):
            classes[:, row, column] = rng.choice(num_classes, top_k, replace=False)
    rest = rng.uniform(low, high, (rows, columns)).astype(np.float32) if residual else None
    return scores.astype(np.float32), classes, rest


def fill(writer, keys, **given):
    """Put a map under each key, its seed the key's place."""
    for seed, key in enumerate(keys):
        writer.put(key, *make_map(seed, **given))


@contextmanager
def editing(path, shard=0):
    """A transaction on a file of a store, for what no writer would do."""
    with lmdb.open(str(path / shard_file(shard)), subdir=False, lock=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            yield transaction


def flip_byte(path, key, place, shard=0):
    """Change one byte of the record of a key."""
    with editing(path, shard) as transaction:
        block, start, length = unpack_location(memoryview(transaction.get(record_key(key.encode()))))
        content = bytearray(transaction.get(block_key(block)))
        content[start + place % length] ^= 1
        transaction.put(block_key(block), bytes(content))
