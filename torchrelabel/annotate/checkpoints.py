"""Checkpoints as training scripts leave them: the weights found, their names made those of the model."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchrelabel.annotate.class_names import names_held
from torchrelabel.errors import TorchRelabelError

# Where training scripts keep the weights; averaged ones first, as in timm's validation.
STATE_DICT_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net", "weights",
)  # fmt: skip
# What data parallelism and torch.compile put in front of every name.
_WRAPPER_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")
# What torch's AveragedModel, which torchvision's references keep as model_ema, counts beside the weights.
_COUNTERS = ("n_averaged",)

_ZIP = b"PK\x03\x04"

_SHOWN = 4
_GLOBAL = re.compile(r"(?:Unsupported (?:global: )?GLOBAL|Unsupported class|Unsupported global:?) ['\"]?([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        state_dict: Names, without the prefixes of data parallelism and torch.compile, to tensors on the CPU.
        class_names: Every list of names beside the weights that may be that of the classes.
        path: The file.
        held: Keys of the file that hold tensors, the one that was taken first; none where a key was asked for.
    """

    state_dict: dict[str, Tensor]
    class_names: list[tuple[str, ...]]
    path: str = ""
    held: tuple[str, ...] = ()

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """What stands in front of these names of a model in the checkpoint: ``""``, ``"model."``, ..."""
        found = {}
        for name in names:
            if name in self.state_dict:
                found[""] = True
            found.update((own[: -len(name)], True) for own in self.state_dict if own.endswith(f".{name}"))
        return sorted(found)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, without it."""
        return {name[len(prefix) :]: value for name, value in self.state_dict.items() if name.startswith(prefix)}

    def classes(self, classifier: str | Sequence[str] | None) -> int | None:
        """C, read off the classifier's weight, whose first axis it is; None if the checkpoint does not tell.

        Raises:
            TorchRelabelError: If it holds several classifiers, with different numbers of classes.
        """
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        weights = [f"{name}.weight" for name in names]
        found = {
            prefix: int(self.state_dict[prefix + weight].shape[0])
            for prefix in self.prefixes(weights)
            for weight in weights
            if prefix + weight in self.state_dict and self.state_dict[prefix + weight].dim()
        }
        if "" in found:
            return found[""]
        if len(set(found.values())) > 1:
            raise self._several(sorted(found))
        return next(iter(found.values()), None)

    def _several(self, prefixes: Sequence[str]) -> TorchRelabelError:
        return TorchRelabelError(
            f"The checkpoint {self.path!r} holds several models, under {_listed(map(repr, prefixes))}. Say which one "
            f"is the annotator: --strip-prefix {prefixes[0]} (strip_prefix={prefixes[0]!r})."
        )


def load_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, strip_prefix: str | None = None
) -> Checkpoint:
    """Read the weights out of a checkpoint, and the names beside them, without executing code.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, or a dict that holds one.
        key: Under which key the weights lie, ``"ema"`` or ``"ema.state_dict"``; if None, under the first there is of
            ``state_dict_ema``, ``model_ema``, ``ema_state_dict``, ``state_dict``, ``model_state_dict``, ``model``,
            ``net`` and ``weights``, or at the top.
        strip_prefix: Take the weights whose names begin with this alone, without it.

    Raises:
        FileNotFoundError: If there is no such file.
        TorchRelabelError: If it cannot be read, or holds no weights.
    """
    path = Path(path)
    require_file(path)
    content = _content_of(path)
    class_names = names_held(content)
    held: tuple[str, ...] = ()
    if key is not None:
        content = _entry(content, key, path)
    elif isinstance(content, Mapping):
        held = tuple(name for name in STATE_DICT_KEYS if _holds_tensors(content.get(name)))
        content = content[held[0]] if held else content
    if not _holds_tensors(content):
        where = "" if key is None else f" under {key!r}"
        keys = STATE_DICT_KEYS if key is None else ()
        raise TorchRelabelError(
            f"The checkpoint {str(path)!r} holds no state dict{where}, but {_kind(content)}. "
            + (f"It must be one, or hold one under {', '.join(keys)}; say where with --state-dict-key." if keys else "")
            + ("Give the key of the weights." if key is not None else "")
        )
    state_dict = {
        _unwrapped(str(name)): value
        for name, value in content.items()
        if isinstance(value, Tensor) and name not in _COUNTERS
    }
    checkpoint = Checkpoint(state_dict, class_names, str(path), held)
    return checkpoint if strip_prefix is None else _stripped(checkpoint, strip_prefix)


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path at which there is no checkpoint, before anything expensive.

    Raises:
        FileNotFoundError: If there is no such file.
        TorchRelabelError: If it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise TorchRelabelError(
            f"The checkpoint {str(path)!r} is a folder, and weights are a file. Give the file; or, if timm or its "
            f"users saved a model there (config.json beside the weights), say --model local-dir:{path} alone."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}. Check the path.")


def fit(checkpoint: Checkpoint, model: nn.Module, name: str) -> list[str]:
    """Load a checkpoint into a model.

    What stands in front of all names, such as Lightning's ``model.``, is dropped where exactly one model in the
    checkpoint then fits.

    Args:
        checkpoint: The weights.
        model: It gets them.
        name: What the model is called, for errors.

    Returns:
        What is worth knowing about what was taken.

    Raises:
        TorchRelabelError: If the weights do not fit, or those of several models in the checkpoint do.
    """
    own = list(model.state_dict())
    prefixes = list(dict.fromkeys(["", *checkpoint.prefixes([own[0], own[-1]])]))
    fitting = {}
    for prefix in prefixes:
        weights = _adapted(model, checkpoint.below(prefix))
        if weights is not None:
            fitting[prefix] = weights
            if not prefix:
                break
    if not fitting:
        raise TorchRelabelError(_misfit(checkpoint, model, prefixes, name))
    if len(fitting) > 1:
        raise checkpoint._several(sorted(fitting))
    ((prefix, weights),) = fitting.items()
    model.load_state_dict(weights)
    notes = []
    if checkpoint.held[1:]:
        taken, *others = checkpoint.held
        notes.append(f"The weights are the checkpoint's {taken}, not its {_listed(others)}: --state-dict-key chooses.")
    if prefix:
        rest = [each for each in checkpoint.state_dict if not each.startswith(prefix)]
        unused = f"; what does not begin so ({_listed(rest)}) was not used" if rest else ""
        notes.append(f"The names of the weights in the checkpoint begin with {prefix!r}, which was dropped{unused}.")
    return notes


def _content_of(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            # A dependency of timm's, imported here since few runs need it.
            from safetensors.torch import load_file

            return load_file(path)
        _check_archive(path)
        with _harmless_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except TorchRelabelError:
        raise
    except Exception as error:  # safetensors, zipfile and torch raise many kinds for a damaged file
        # torch's own words advise to load the file without safety, which must not be passed on.
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            found = _GLOBAL.search(str(error))
            what = f"objects of {found[1]}" if found else "more than tensors, or is no checkpoint,"
            raise TorchRelabelError(
                f"The checkpoint {str(path)!r} holds {what} and is not opened, since loading it could run code. "
                f"Save the weights alone where they come from: torch.save(model.state_dict(), 'weights.pth')."
            ) from error
        raise TorchRelabelError(
            f"The checkpoint {str(path)!r} cannot be read: {first_line(error)}. Copy it again, or give another."
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse a program, and what was damaged since torch.save wrote it.

    torch.load compares no checksum, so that a bit that was flipped would be another weight.

    Raises:
        TorchRelabelError: If it is a program.
        Exception: If it is damaged: zipfile, too, raises many kinds.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:  # of torch before 1.6, which has no checksum, or no checkpoint
            return
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.filename.endswith("/constants.pkl") or "/code/" in part.filename for part in parts):
                raise TorchRelabelError(
                    f"The checkpoint {str(path)!r} is a TorchScript archive: a program with its weights, which is not "
                    f"run here. Save the weights alone where the archive comes from: "
                    f"torch.save(torch.jit.load(file).state_dict(), 'weights.pth')."
                )
            # Before they are read: little may be packed so that it unpacks to more than there is memory.
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                raise ValueError("its parts are compressed, which torch.save never does")
            has_checksums = any(part.CRC for part in parts)  # torch.serialization.set_crc32_options(False) writes none
            damaged = archive.testzip() if has_checksums else None
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged!r} in it does not match")


def _harmless_allowed() -> contextlib.AbstractContextManager[Any]:
    """Let torch read what training scripts keep beside the weights, and what runs no code of a stranger's.

    Arguments (timm's and torchvision's scripts), paths (Lightning's), and NumPy's numbers (the best accuracy so far).
    """
    # torch before 2.5 has no safe_globals; there such a checkpoint is refused with the error that says what to do.
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:
        return contextlib.nullcontext()
    numbers = [
        np.dtype,
        np.float64(0).__reduce__()[0],
        *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")),
    ]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath]
    return safe_globals([argparse.Namespace, *paths, *numbers])


def _entry(content: Any, key: str, path: Path) -> Any:
    """What lies under a key, or under keys with dots between them."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise TorchRelabelError(
                f"The checkpoint {str(path)!r} has no {key!r}, but {_kind(content)}. Give one of its keys with "
                f"--state-dict-key, or leave that out."
            )
        content = content[part]
    return content


def _holds_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _kind(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return f"the keys {_listed((repr(str(key)) for key in content), 8)}" if content else "nothing"


def _stripped(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    below = checkpoint.below(prefix)
    if not below:
        raise TorchRelabelError(
            f"No weight in the checkpoint {checkpoint.path!r} has a name that begins with {prefix!r}: they are "
            f"{_listed(checkpoint.state_dict)}. Give the beginning of the annotator's with --strip-prefix."
        )
    return replace(checkpoint, state_dict=below)


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _adapted(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights that fit the model exactly, adapted by timm if need be; None if they do not."""
    if _fits(model, state_dict):
        return state_dict
    # timm's families keep what adapts published weights (names, position embeddings of another size) under this name
    # in the module of the model.
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return None
    try:
        adapted = adapt(dict(state_dict), model)
    except Exception:  # made for other weights than these: the differences are reported
        return None
    return adapted if _fits(model, adapted) else None


def _fits(model: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state_dict.keys() and all(state_dict[name].shape == own[name].shape for name in own)


def _misfit(checkpoint: Checkpoint, model: nn.Module, prefixes: Sequence[str], name: str) -> str:
    """Say how the weights differ from the model's: what is missing, what is too much, and what has another shape."""
    own = model.state_dict()
    prefix = max(prefixes, key=lambda prefix: len(own.keys() & checkpoint.below(prefix).keys()))
    weights = checkpoint.below(prefix)
    missing = [each for each in own if each not in weights]
    unexpected = [each for each in weights if each not in own]
    shapes = [
        f"{each}: {list(weights[each].shape)} in the checkpoint, {list(own[each].shape)} in the model"
        for each in own
        if each in weights and weights[each].shape != own[each].shape
    ]
    lines = [
        f"  {what} ({len(items)}): {_listed(items, separator=separator)}"
        for what, items, separator in (
            ("missing", missing, ", "),
            ("unexpected", unexpected, ", "),
            ("other shapes", shapes, "; "),
        )
        if items
    ]
    after = f", after {prefix!r}," if prefix else ""
    there = f" It also holds {_listed(checkpoint.held[1:])}: --state-dict-key." if checkpoint.held[1:] else ""
    return (
        f"The checkpoint {checkpoint.path!r} does not fit {name}. Of its weights{after} are\n"
        + "\n".join(lines)
        + f"\nGive the model that the weights were trained as, and its size (--image-size); or what stands "
        f"in front of its names (--strip-prefix).{there}"
    )


def _listed(items: Iterable[str], shown: int = _SHOWN, separator: str = ", ") -> str:
    """The first of many, and how many more there are."""
    items = list(items)
    rest = len(items) - shown
    return separator.join(items[:shown]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the full stop at its end."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
