"""How the golden stores were made, once, each with the release of its format version; no test runs this.

    python -m tests.store.golden.make DIRECTORY  # today's version, 3

A new version of the format adds stores beside these and changes none of them.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from torchrelabel.calibration import Calibration
from torchrelabel.store import LabelStoreWriter, write_calibration

LONG_KEY = "long/" + 60 * "path/to/" + "straße/" + 10 * "x" + "/9.JPEG"
GOLDEN_IDENTITY = bytes(range(16)).hex()
GOLDEN_SIZES = [(500, 375), None, (3, 65536), (1, 1)]
GOLDEN_CALIBRATION = Calibration((0.5, -0.25, 0.0), (0.75, 0.5, 0.125), 0.0625, {"kl": 0.5})
KEYS = ["n01440764/n01440764_10026.JPEG", "001.Black_footed_Albatross/a.b.jpg", "caf\udce9.png", LONG_KEY]


def golden_map(place):
    """The map of each key, on 7 x 5, 8 x 5, ... cells: all scores multiples of 1/4, which half precision holds."""
    rows, columns = 7 + place, 5
    cell = np.arange(rows * columns).reshape(rows, columns)
    scores = np.stack([12 + cell % 9, cell % 9, -3 - cell % 7]) / 4
    kept = np.stack([21840 - 100 * (cell % 4), cell % 3 + 2049, 5 + place + 0 * cell])
    return scores.astype(np.float32), kept, (cell % 6 - 8).astype(np.float32) / 4


def golden_image_scores(place):
    """The scores of each whole image: 100 of the classes stand out."""
    scores = np.full(21841, -4.0)
    scores[place * 7 : (place + 100) * 7 : 7] = np.linspace(6, -2, 100)
    return scores


def main(directory):
    """Write one store for each codec; the last map is in a second part.

    Versions 1 and 2 had no sizes of images and no parts, version 1 no scores of whole images and no calibration.
    """
    for codec in ("float16", "uint8"):
        path = Path(directory) / f"v3-{codec}"
        begin(path, codec, KEYS[:3])
        begin(path, codec, KEYS)
        write_calibration(path, GOLDEN_CALIBRATION)
        for lock in path.glob("*lock"):
            lock.unlink()


def begin(path, codec, keys):
    """Write some of the maps, those that are not there yet; the identity is not drawn."""
    with patch("secrets.token_hex", lambda _: GOLDEN_IDENTITY):
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
            image_top_k=100,
            resume=True,
        ) as writer:
            for place, key in enumerate(keys):
                writer.put(
                    key,
                    *golden_map(place),
                    coverage=(0, 0.25, 1, 0.75) if place == 1 else None,
                    image_scores=golden_image_scores(place),
                    image_size=GOLDEN_SIZES[place],
                    exif_turned=place == 2,
                )
            writer.put_failure("broken.jpg", "the file is cut short")


if __name__ == "__main__":
    main(*sys.argv[1:])
