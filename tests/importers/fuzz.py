"""Mutated .pt files and tables: no crash, no hang, no growth, and no other numbers where a checksum covers them.

    python -m tests.importers.fuzz 100000  # prints a summary as JSON; run by test_fuzz.py

Of each ten inputs, four are files of today's torch, three of torch before 1.6, which has no checksum, and three tables.
Never allowed are: an error that is not one of refusal; other numbers from a file that has a checksum; what no store
takes; more than ten seconds of work.
"""

import collections
import io
import json
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from tests.importers.published import CLASSES, tensor
from tests.store.fuzz import limit, mutate
from torchrelabel.importers.multilabel_tsv import parse_row, scan
from torchrelabel.importers.tensor_file import read_map

ROWS = 20


def saved(**options):
    file = io.BytesIO()
    torch.save(tensor(), file, **options)
    return file.getvalue()


def table():
    """Rows as the publisher writes them, some with titles' and pandas' habits."""
    lines = ["path\tgt\tidx_list\tprob_list"]
    for number in range(ROWS):
        classes = [(number * 7 + place * 3) % CLASSES for place in range(1 + number % 4)]
        lists = ",".join(map(str, classes)), ",".join(f"{1 / (place + 1):.4f}" for place in range(len(classes)))
        cells = [
            f"n{number:02}/ü {number}.JPEG",
            str(classes[0]),
            *(f"[{each}]" if number % 2 else each for each in lists),
        ]
        lines.append("\t".join(f'"{cell}"' if number % 5 == 0 else cell for cell in cells))
    return ("\n".join(lines) + "\n").encode()


class Fuzz:
    """Mutates three files, and counts what comes of it."""

    def __init__(self, root, seed):
        self.rng = random.Random(seed)
        self.path = Path(root) / "x"
        self.files = {"of today": saved(), "of torch before 1.6": saved(_use_new_zipfile_serialization=False)}
        self.want = {name: self.read(content) for name, content in self.files.items()}
        self.table = table()
        self.counts = collections.Counter()

    def run(self, count):
        for number in range(count):
            limit(10)
            if number % 10 < 7:
                self.map_file("of today" if number % 10 < 4 else "of torch before 1.6")
            else:
                self.rows()
        limit(0)
        return dict(sorted(self.counts.items()))

    def read(self, content):
        self.path.write_bytes(content)
        decoded = read_map(self.path, dtype="float32", num_classes=CLASSES)
        assert np.isfinite(decoded.scores).all()
        assert 0 <= decoded.classes.min() <= decoded.classes.max() < CLASSES
        assert decoded.scores.nbytes + decoded.classes.nbytes < 2 * len(content) + 1024
        return decoded.scores.tobytes(), decoded.classes.tobytes(), decoded.checked

    def map_file(self, name):
        kind, content = mutate(self.rng, self.files[name])
        try:
            read = self.read(content)
        except (ValueError, OSError):
            self.counts[f".pt {name}: refused"] += 1
            return
        except Exception as error:
            self.counts[f"WRONG {type(error).__name__} of .pt {name}, {kind}: {error}"[:120]] += 1
            return
        if read == self.want[name]:
            self.counts[f".pt {name}: the same numbers"] += 1
        else:
            self.counts[f"{'WRONG ' if read[2] else ''}.pt {name}: other numbers"] += 1

    def rows(self):
        _, content = mutate(self.rng, self.table)
        if self.rng.random() < 0.3:  # what bytes alone seldom hit
            place = self.rng.randrange(len(content) or 1)
            word = self.rng.choice(["\t", "\n", '"', "9" * 5000, "1e400", "nan", "-1", "\0", ",,", "٣", "\ufeff"])
            content = content[:place] + word.encode() + content[place:]
        self.path.write_bytes(content)
        try:
            found = scan(self.path, CLASSES)
            refused = 0
            for place in found.places.values():
                try:
                    classes, probabilities = parse_row(content[place:].partition(b"\n")[0], CLASSES)
                except ValueError:
                    refused += 1
                    continue
                assert len(set(classes)) == len(probabilities) <= found.longest
                assert all(0 <= index < CLASSES for index in classes)
                assert probabilities == sorted(probabilities, reverse=True)
                assert 0 <= probabilities[-1] <= probabilities[0] <= 1
        except Exception as error:
            self.counts[f"WRONG {type(error).__name__} of a table: {error}"[:120]] += 1
        else:
            self.counts[f"table: {'rows refused' if refused or found.nameless else 'every row read'}"] += 1


def main(count, seed="0"):
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(folder, int(seed))
        fuzz.run(200)  # what grows once
        fuzz.counts.clear()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts = fuzz.run(int(count))
        counts["peak growth, MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
