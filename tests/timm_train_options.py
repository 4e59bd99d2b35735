"""The options of timm's train.py that the recipes use, as its parser defines them (timm 1.0.31).

The script is not part of timm's package. Set TIMM_TRAIN to a copy of it, and the tests take its own parser instead.
"""

from __future__ import annotations

import argparse
import os
import runpy

from timm.utils import ParseKwargs

FLAGS = ("--amp", "--bce-loss", "--channels-last", "--no-prefetcher", "--sched-on-updates")
TEXT = ("--aa", "--data-dir", "--interpolation", "--model", "--opt", "--remode", "--sched", "--train-interpolation")
WHOLE = ("--batch-size", "--epochs", "--img-size", "--mixup-off-epoch", "--warmup-epochs", "--workers")
NUMBERS = (
    "--aug-repeats",
    "--bce-target-thresh",
    "--color-jitter",
    "--crop-pct",
    "--cutmix",
    "--drop",
    "--drop-path",
    "--lr",
    "--min-lr",
    "--mixup",
    "--mixup-prob",
    "--momentum",
    "--reprob",
    "--smoothing",
    "--warmup-lr",
    "--weight-decay",
)


def timm_parser() -> argparse.ArgumentParser:
    """The script's own parser where there is a copy of it; else one with what the recipes use."""
    script = os.environ.get("TIMM_TRAIN")
    if script:
        parser = runpy.run_path(script, run_name="timm_train")["parser"]
        assert isinstance(parser, argparse.ArgumentParser)
        return parser
    # As in the script, an option may be shortened; the recipes are not to.
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name in FLAGS:
        parser.add_argument(name, action="store_true")
    for names, kind in ((TEXT, str), (WHOLE, int), (NUMBERS, float)):
        for name in names:
            parser.add_argument(name, type=kind)
    parser.add_argument("--input-size", nargs=3, type=int)
    parser.add_argument("--opt-kwargs", nargs="*", default={}, action=ParseKwargs)
    return parser
