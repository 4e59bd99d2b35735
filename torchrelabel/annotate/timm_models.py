"""timm's models: their names, and their weights with or without internet access."""

from __future__ import annotations

import difflib
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import timm
import timm.models
import torch

from torchrelabel.annotate.checkpoints import first_line, fit, load_checkpoint
from torchrelabel.annotate.class_names import names_held
from torchrelabel.errors import TorchRelabelError, UnsupportedModel

# The Hub's own library tries for a minute. Who has no internet access need not wait so long to be told.
_SECONDS_FOR_AN_ANSWER = 5.0
_SAFE_WEIGHTS = "model.safetensors"


class BuiltModel(NamedTuple):
    """A classifier of timm's with its weights.

    Attributes:
        model: In training mode, on the CPU; its configuration is ``pretrained_cfg``.
        name: As timm spells it today, with the tag of the weights where timm chose them.
        weights: ``"pretrained"``, ``"checkpoint"`` or ``"random"``.
        class_names: What its classes are called, if the weights came with names.
        notes: What is worth knowing about the weights.
    """

    model: Any
    name: str
    weights: str
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def build_timm(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
) -> BuiltModel:
    """Build a classifier of timm's for RGB images, and load its weights; arguments as for `Annotator.from_timm`.

    Raises:
        TypeError: If ``name`` is no name.
        ValueError: If timm knows no such model, or the size or the number of classes does not fit it.
        FileNotFoundError: If there is no such checkpoint.
        UnsupportedModel: If it does not take RGB images.
        TorchRelabelError: If the weights cannot be fetched, read, or do not fit the model.
    """
    name = canonical_name(name)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}. Leave it out for the model's own.")
    cfg = None if ":" in name else timm.models.get_pretrained_cfg(name)
    weights = None
    named: list[tuple[str, ...]] = []
    notes: list[str] = []
    if checkpoint is not None:
        weights = load_checkpoint(checkpoint, key=state_dict_key, strip_prefix=strip_prefix)
        named = weights.class_names
        if num_classes is None and cfg is not None:
            num_classes = weights.classes(cfg.classifier)
    elif num_classes is not None and pretrained and cfg is not None and num_classes != cfg.num_classes:
        raise ValueError(
            f"{name} was trained for {cfg.num_classes} classes, so with num_classes={num_classes} its classifier "
            f"would be random. Leave num_classes out, or give a checkpoint with {num_classes} classes."
        )
    pretrained = pretrained and weights is None
    model = create_model(name, pretrained=pretrained, image_size=image_size, classes=num_classes)
    if weights is not None:
        notes = fit(weights, model, name)
    config: dict[str, Any] = model.pretrained_cfg
    if config["input_size"][0] != 3:
        raise UnsupportedModel(
            f"{name} takes {config['input_size'][0]} channels, and images here have 3 (RGB). Take another model."
        )
    if pretrained:
        named = names_held(config)
        if ":" not in name and "." not in name and config.get("tag"):
            name = f"{name}.{config['tag']}"  # the weights that timm takes today when none are named
    return BuiltModel(
        model,
        name,
        "checkpoint" if weights is not None else "pretrained" if pretrained else "random",
        next((names for names in named if len(names) == model.num_classes), None),
        tuple(notes),
    )


def canonical_name(name: str) -> str:
    """Map an old name of timm's to today's, and refuse unknown ones with the nearest that exist.

    Raises:
        TypeError: If it is no name, but a model.
        ValueError: If timm knows no such model, no such tag, has removed it, or does not read folders yet.
        FileNotFoundError: If it is a folder (``local-dir:``) that does not exist, or holds no model of timm's.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"A model is given by timm's name of it, got a {type(name).__name__}. "
            f"Annotator.from_model(features=..., head=..., ...) makes an annotator of any module."
        )
    source, separator, place = name.partition(":")
    if separator:
        if source == "local-dir":
            _require_model_folder(Path(place))
        return name  # hf-hub:owner/model and local-dir:folder are timm's to resolve
    # Asked first, since timm warns about every old name that it maps itself.
    deprecated = timm.models.get_deprecated_models()
    if name in deprecated:
        current = deprecated[name]
        if not current:
            raise ValueError(
                f"timm {timm.__version__} has removed the model {name!r} without a successor. Take another one."
            )
        return str(current)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(nearest)}." if nearest else "timm.list_models() lists them."
        if Path(name).exists():
            hint = f"A folder with a model is given as local-dir:{name}, a file of weights with --checkpoint."
        raise ValueError(f"timm {timm.__version__} knows no model {name!r}. {hint}")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = sorted(cfg_name for cfg_name in timm.list_pretrained(f"{architecture}.*"))
        known = f"It has {', '.join(tags)}." if tags else "It has no weights of timm's."
        raise ValueError(f"{architecture} has no weights called {tag!r}. {known}") from error
    return name


def _reads_folders() -> bool:
    """Whether this release of timm knows ``local-dir:``."""
    return hasattr(timm.models._hub, "load_model_config_from_path")


def _require_model_folder(folder: Path) -> None:
    if not _reads_folders():
        raise ValueError(
            f"timm {timm.__version__} does not read models from folders (local-dir:). Install a newer timm, or name "
            f"the model and give the file of weights (--checkpoint)."
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Give the one that holds config.json.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no config.json, which says which model of timm's its weights are of. Name the "
            f"model and give the file of weights (--checkpoint)."
        )


def create_model(name: str, *, pretrained: bool, image_size: int | None, classes: int | None) -> Any:
    """Build a model of timm's, at a size if it is built for one.

    Args:
        name: Canonical.
        pretrained: Load its weights; otherwise they are random, the same ones every time.
        image_size: Side in pixels; the model's own if None.
        classes: C; the model's own if None.

    Raises:
        ValueError: If timm cannot build it so.
        TorchRelabelError: If its weights cannot be had, saying how to bring them.
    """
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    source = name
    # Random weights must be the same in every run and on every rank, or no run could continue another. The generator
    # of the CPU alone: torch.manual_seed would seed those of CUDA devices too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            if pretrained:
                source, overlay = _source_of_weights(name)
                options |= overlay
            try:
                return timm.create_model(source, pretrained=pretrained, **options, **sized)
            except TypeError as error:
                # Only models of fixed size (ViT, Swin) are built for one; the others take any.
                if "img_size" not in str(error):
                    raise
                return timm.create_model(source, pretrained=pretrained, **options)
        except Exception as error:
            if name.startswith("local-dir:"):
                raise TorchRelabelError(_no_model_of_timm(name, error)) from error
            if not pretrained:
                size = "" if image_size is None else f" at {image_size} px"
                raise ValueError(
                    f"timm cannot build {name}{size}: {first_line(error)}. Give another model or size."
                ) from error
            raise TorchRelabelError(_how_to_bring(name, error)) from error


def require_weights(name: str) -> None:
    """Refuse a name whose weights cannot be had, which is known within seconds.

    Raises:
        TorchRelabelError: Saying how to bring them.
    """
    try:
        _source_of_weights(name)
    except OSError as error:
        raise TorchRelabelError(_how_to_bring(name, error)) from error


def _source_of_weights(name: str) -> tuple[str, dict[str, Any]]:
    """Under which name, and with which options, timm finds weights without asking the Hub in vain.

    Raises:
        OSError: If they would have to be fetched, and the Hub does not answer.
    """
    repository, filename = _on_the_hub(name)
    if repository is None:
        return name, {}
    kept = _kept(repository, filename or _SAFE_WEIGHTS)
    if ":" not in name:
        # Weights that are on this machine already are taken from it, and the Hub is not asked.
        if kept is not None and kept.suffix == ".safetensors":
            return name, {"pretrained_cfg_overlay": {"file": str(kept)}}
    elif kept is not None and (kept.parent / "config.json").is_file() and _reads_folders() and not _hub_answers():
        return f"local-dir:{kept.parent}", {}
    if not _is_offline() and not _hub_answers():
        raise OSError(
            f"{repository} is not in the cache of Hugging Face's Hub on this machine, and the Hub does not answer"
        )
    return name, {}


def _on_the_hub(name: str) -> tuple[str | None, str | None]:
    """The repository of a model on Hugging Face's Hub, and the file in it if it is named; None if it is elsewhere."""
    source, separator, place = name.partition(":")
    if separator:
        return (place.partition("@")[0], None) if source in ("hf-hub", "hf_hub") else (None, None)
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or cfg.file or not cfg.hf_hub_id:
        return None, None
    return cfg.hf_hub_id.partition("@")[0], cfg.hf_hub_filename


def _kept(repository: str, filename: str) -> Path | None:
    """A file of a repository on the Hub that an earlier run has fetched."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, filename)
    return Path(path) if isinstance(path, str) else None


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _hub_answers() -> bool:
    """Whether Hugging Face's Hub can be reached, known within seconds."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS_FOR_AN_ANSWER).close()
        except urllib.error.HTTPError as refusal:
            refusal.close()  # an answer all the same
        except urllib.error.URLError as error:
            # Whoever has certificates of their own has told the Hub's library, and not this one.
            if "certificate" not in str(error).lower():
                return
        except OSError:
            return
        answered.set()

    # Looking a name up takes as long as it likes, so that it is not waited for.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_FOR_AN_ANSWER)
    return answered.is_set()


def _how_to_bring(name: str, error: Exception) -> str:
    return (
        f"timm could not load the pretrained weights of {name}: {first_line(error)}.\n"
        f'Ways to bring them: download them on a machine with internet access (python -c "import timm; '
        f"timm.create_model('{name}', pretrained=True)\") and copy its Hugging Face cache (HF_HUB_CACHE, by "
        f"default ~/.cache/huggingface/hub) here; or give a file of weights with --checkpoint. "
        f"torchrelabel annotate --no-pretrained tries everything else out, with random weights."
    )


def _no_model_of_timm(name: str, error: Exception) -> str:
    return (
        f"timm cannot build a model from {name}: {first_line(error)}. The folder must hold config.json and weights "
        f"as timm saves them (timm.models.save_for_hf, or a timm/ repository of the Hub). A model of transformers is "
        f"an annotator from Python: Annotator.from_model(features=..., head=..., ...)."
    )
