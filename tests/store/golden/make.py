"""How the golden stores were made, once, with format version 1; no test runs this.

    python -m tests.store.golden.make DIRECTORY

A new version of the format adds stores beside these and changes none of them.
"""

import sys
from pathlib import Path

import numpy as np

from torchrelabel.store import LabelStoreWriter

LONG_KEY = "long/" + 60 * "path/to/" + "straße/" + 10 * "x" + "/9.JPEG"
KEYS = ["n01440764/n01440764_10026.JPEG", "001.Black_footed_Albatross/a.b.jpg", "caf\udce9.png", LONG_KEY]


def golden_map(place):
    """The map of each key, on 7 x 5, 8 x 5, ... cells: all scores multiples of 1/4, which half precision holds."""
    rows, columns = 7 + place, 5
    cell = np.arange(rows * columns).reshape(rows, columns)
    scores = np.stack([12 + cell % 9, cell % 9, -3 - cell % 7]) / 4
    kept = np.stack([21840 - 100 * (cell % 4), cell % 3 + 2049, 5 + place + 0 * cell])
    return scores.astype(np.float32), kept, (cell % 6 - 8).astype(np.float32) / 4


def main(directory):
    """Write one store for each codec."""
    for codec in ("float16", "uint8"):
        path = Path(directory) / f"v1-{codec}"
        with LabelStoreWriter(
            path,
            num_classes=21841,
            top_k=3,
            codec=codec,
            residual=True,
            shards=2,
            coverage=(0.125, 0, 0.875, 1),
            grid=(7, 5),
            annotator={"model": "golden", "mean": [0.5, 0.25, 0.125], "image_size": 475},
            class_to_idx={"n01440764": 0, "caf\udce9": 1},
            dataset={"count": 5, "fingerprint": "golden"},
        ) as writer:
            for place, key in enumerate(KEYS):
                writer.put(key, *golden_map(place), coverage=(0, 0.25, 1, 0.75) if place == 1 else None)
            writer.put_failure("broken.jpg", "the file is cut short")
        for lock in path.glob("*.lock"):
            lock.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
