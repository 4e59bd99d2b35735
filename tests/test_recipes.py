"""Every command of docs/recipes.md is one that its program understands, and says what the paper says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest
import timm.optim
import torch
from timm.data.auto_augment import rand_augment_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from tests.timm_train_options import timm_parser
from torchrelabel.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()


def commands() -> list[list[str]]:
    """Each command of the page as its words, its variables filled in as the shell does."""
    variables: dict[str, str] = {}
    found = []
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            assignment = re.fullmatch(r'([A-Z0-9]+)="(.*)"', line)
            if assignment:
                variables[assignment[1]] = assignment[2]
            else:
                found.append(shlex.split(Template(line).substitute(variables)))
    return found


COMMANDS = commands()
OURS = [words[1:] for words in COMMANDS if words[0] == "torchrelabel"]
TRAINING = [words for words in COMMANDS if words[0] == "torchrun"]


def parsed(words: list[str]) -> tuple[Any, str | None]:
    """The arguments of train.py, and its label maps."""
    assert words[:3] == ["torchrun", "--nproc-per-node", "4"]
    rest, label_maps = words[3:], None
    if rest[0] == "-m":
        assert rest[1:3] == ["torchrelabel", "timm-train"]
        context = context_of(rest[2:])
        label_maps, rest = context.params["label_maps"], [context.params["script"], *context.params["arguments"]]
    assert rest[0] == "train.py"
    return timm_parser().parse_args(rest[1:]), label_maps


def context_of(words: list[str]) -> click.Context:
    """The context of a command of ours with these words: wrong ones raise."""
    group: click.Command = main
    context = click.Context(main)
    while isinstance(group, click.Group):
        command = group.get_command(context, words[0])
        assert command is not None, words[0]
        group, words = command, words[1:]
    return group.make_context(group.name, list(words))


def test_the_page_has_commands_of_every_kind() -> None:
    assert len(OURS) == 5 and len(TRAINING) == 19
    assert len(OURS) + len(TRAINING) == len(COMMANDS)


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_of_ours_is_understood(words: list[str]) -> None:
    context_of(words)


def test_a_command_with_a_wrong_word_is_not() -> None:
    with pytest.raises(click.UsageError):
        context_of(["evaluate", "resnet50", "--dat", "imagenet/val", "--real-json", "x"])
    with pytest.raises(SystemExit):
        parsed([*TRAINING[0], "--learning-rate", "1"])


@pytest.mark.parametrize("words", TRAINING, ids=lambda words: " ".join(words[3:]))
def test_a_training_is_understood_and_can_begin(words: list[str]) -> None:
    args, label_maps = parsed(words)
    assert timm.is_model(args.model)
    if not hasattr(timm.optim, "list_optimizers"):
        pytest.skip(f"timm {timm.__version__} has an AdamP that takes no arguments")
    assert args.opt in timm.optim.list_optimizers()
    assert label_maps in (None, "relabel.lmdb")
    # Soft labels are not smoothed on top.
    assert label_maps is None or args.smoothing == 0
    if args.aa:
        rand_augment_transform(args.aa, {})
    optimizer = create_optimizer_v2(
        torch.nn.Linear(2, 2), opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, **args.opt_kwargs
    )
    schedule, epochs = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        min_lr=args.min_lr,
        step_on_epochs=not args.sched_on_updates,
        updates_per_epoch=10,
    )
    assert epochs == args.epochs
    schedule.step_update(num_updates=10 * args.warmup_epochs) if args.sched_on_updates else schedule.step(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(args.lr, rel=1e-2)


def test_the_rows_of_the_tables_are_all_there() -> None:
    rows = [(args.model, args.opt, bool(args.cutmix), bool(maps)) for args, maps in map(parsed, TRAINING)]
    resnets = ("resnet18", "resnet50", "resnet101")
    expected = [(model, "sgd", False, maps) for model in resnets for maps in (False, True)]
    expected += [(model, "adamp", True, True) for model in resnets] + [("resnet50", "sgd", True, True)]
    others = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "rexnet_100")
    expected += [(model, "adamp", False, True) for model in others]
    expected += [("resnet50", "lamb", True, maps) for maps in (False, True)] * 2
    assert rows == expected


def test_the_settings_are_those_of_the_paper() -> None:
    for args, _ in map(parsed, TRAINING):
        whole = args.batch_size * 4
        if args.opt == "sgd":
            assert (whole, args.epochs, args.lr, args.weight_decay) == (1024, 300, 0.1, 1e-4)
        if args.opt == "adamp":
            assert (args.lr, args.weight_decay, args.opt_kwargs) == (2e-3, 0.01, {"nesterov": True})
            assert (whole, args.epochs) == ((1024, 300) if args.cutmix else (512, 400))
        if args.cutmix and args.opt != "lamb":
            # Workers that mix are not told when to stop: CutMix is left to the training process.
            assert args.epochs - args.mixup_off_epoch == 5 and args.no_prefetcher
        if args.opt == "lamb":
            assert whole == 2048


def test_the_maps_of_the_paper_are_made_without_what_it_does_not_have() -> None:
    _, paper, ours, *_ = (context_of(words).params for words in OURS)
    assert (paper["top_k"], paper["residual"], paper["image_top_k"], paper["enlarge"]) == (5, False, 0, 1)
    assert paper["interpolation"] == "bilinear"
    assert ours["output"] == "calibrated.lmdb" and ours["image_top_k"] is None
