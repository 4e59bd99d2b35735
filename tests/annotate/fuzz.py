"""Mutated checkpoints: each is refused in our words or loads as it was, without a crash, a hang or much memory.

    python -m tests.annotate.fuzz 100000  # prints a summary as JSON; run by test_fuzz.py

Of each ten inputs, three are files of today's torch, two the same with a part changed before it got its checksum, two
files of torch before 1.6 and two safetensors, which have no checksum, and one TorchScript. Never allowed are: an error
that is not one of refusal; a weight, name or class name that is another one where a checksum covers it; a program that
is taken for weights; weights beyond the file's size; torch's advice to load without safety; ten seconds of work.
"""

import argparse
import collections
import io
import json
import random
import resource
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from tests.store.fuzz import limit, mutate
from torchrelabel.annotate.checkpoints import fit, load_checkpoint
from torchrelabel.errors import TorchRelabelError

CLASSES = ["cat", "dog", "tree", "house", "car"]
TURNS = ["today's", "today's", "rebuilt", "today's", "rebuilt", "before 1.6", "before 1.6"]
TURNS += ["safetensors", "safetensors", "TorchScript"]


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, len(CLASSES)))


def files():
    """A file of each kind; torch's hold what a training script keeps beside the weights."""
    state = model().state_dict()
    kept = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "class_names": CLASSES,
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    }
    made = {"safetensors": safetensors.torch.save(state)}
    for kind, of_today in (("today's", True), ("before 1.6", False)):
        file = io.BytesIO()
        torch.save(kept, file, _use_new_zipfile_serialization=of_today)
        made[kind] = file.getvalue()
    made["rebuilt"] = made["today's"]
    made["TorchScript"] = rebuilt(made["today's"], more={"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"pass"})
    return made


def rebuilt(content, change=lambda name, part: part, more=(), compression=zipfile.ZIP_STORED):
    """A zip archive with other parts, and checksums that are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].partition("/")[0]
        for name in more:
            new.writestr(f"{root}/{name}", more[name])
    return file.getvalue()


class Fuzz:
    """Mutates a file of each kind, and counts what comes of it."""

    def __init__(self, root, seed):
        self.rng = random.Random(seed)
        self.root = Path(root)
        self.files = files()
        self.model = model()
        self.want = {kind: self.read(kind, content) for kind, content in self.files.items() if kind != "TorchScript"}
        self.counts = collections.Counter()

    def run(self, count):
        for number in range(count):
            limit(10)
            self.file(TURNS[number % 10])
        limit(0)
        return dict(sorted(self.counts.items()))

    def read(self, kind, content):
        path = self.root / ("x.safetensors" if kind == "safetensors" else "x.pth")
        path.write_bytes(content)
        checkpoint = load_checkpoint(path)
        for value in checkpoint.state_dict.values():
            assert value.untyped_storage().nbytes() <= len(content)
        checkpoint.classes("3")
        fit(checkpoint, self.model, "a small model")
        weights = {name: (value.dtype, value.numpy().tobytes()) for name, value in self.model.state_dict().items()}
        return weights, checkpoint.class_names

    def changed(self, kind):
        content = self.files[kind]
        if kind != "rebuilt":
            return mutate(self.rng, content)
        victim = self.rng.choice(["/data.pkl", "/data.pkl", "/data/0", "/byteorder"])
        return f"of {victim}", rebuilt(
            content,
            lambda name, part: mutate(self.rng, part)[1] if name.endswith(victim) and part else part,
            compression=self.rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]),
        )

    def file(self, kind):
        how, content = self.changed(kind)
        try:
            read = self.read(kind, content)
        except TorchRelabelError as error:
            unsafe = "weights_only" in str(error)  # torch's advice, which would run what is in the file
            self.counts[f"{'WRONG advice, ' * unsafe}{kind}: refused"] += 1
        except Exception as error:
            self.counts[f"WRONG {type(error).__name__} of {kind}, {how}: {error}"[:160]] += 1
        else:
            same = read == self.want.get(kind)
            wrong = not same and kind in ("today's", "TorchScript")
            self.counts[f"{'WRONG ' * wrong}{kind}: {'as it was' if same else 'other content'}"] += 1


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
