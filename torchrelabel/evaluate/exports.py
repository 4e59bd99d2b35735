"""Models that left Python: torch.export's .pt2 and ONNX."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrelabel.errors import TorchRelabelError, UnsupportedModel


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        model: Normalised images ``[N, 3, S, S]`` to scores.
        image_size: S, if it takes no other.
        batch: N, if it takes no other.
        differentiable: Whether scores have a gradient by the pixels.
    """

    model: Callable[[Tensor], Any]
    image_size: int | None
    batch: int | None
    differentiable: bool


def load_pt2(path: Path) -> Export:
    """Load what ``torch.export.save`` wrote.

    torch evaluates expressions that such a file may hold: open only files from people you trust.

    Raises:
        TorchRelabelError: If torch cannot read it.
        UnsupportedModel: If it does not take one batch of RGB images.
    """
    try:
        with _weights_only():
            program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds
        said = str(error).strip().splitlines()
        raise TorchRelabelError(
            f"torch.export.load cannot read {str(path)!r}: {said[0] if said else type(error).__name__}. Write it with "
            f"torch.export.save; packages that are compiled for one machine (AOTInductor) hold no program."
        ) from error
    inputs = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in inputs]
    return Export(program.module(), *_sizes([list(shape) for shape in shapes], path), differentiable=True)


def load_onnx(path: Path, device: str | torch.device | None = None) -> Export:
    """Load an ONNX file.

    Raises:
        ImportError: If onnxruntime is missing, with the command.
        TorchRelabelError: If onnxruntime cannot read it.
        UnsupportedModel: If it does not take one batch of RGB images, in single or half precision.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("ONNX files need onnxruntime: pip install 'torchrelabel[evaluate]'") from None
    on_cpu = not torch.cuda.is_available() if device in (None, "auto") else torch.device(str(device)).type == "cpu"
    providers = ["CPUExecutionProvider"] if on_cpu else onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no common base
        said = str(error).strip().splitlines()
        raise TorchRelabelError(f"onnxruntime cannot read {str(path)!r}: {said[0]}") from error
    inputs = session.get_inputs()
    types = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
    sizes = _sizes([list(each.shape) for each in inputs], path)
    if inputs[0].type not in types:
        raise UnsupportedModel(f"{str(path)!r} takes {inputs[0].type}, and images here are floating point.")
    name, precision = inputs[0].name, types[inputs[0].type]

    def run(images: Tensor) -> Tensor:
        outputs = session.run(None, {name: images.detach().to("cpu", precision).numpy()})
        return torch.from_numpy(outputs[0]).to(images.device)

    return Export(run, *sizes, differentiable=False)


def _sizes(shapes: list[list[Any]], path: Path) -> tuple[int | None, int | None]:
    """S and N, as far as they are fixed."""
    if len(shapes) != 1 or len(shapes[0]) != 4 or (isinstance(shapes[0][1], int) and shapes[0][1] != 3):
        raise UnsupportedModel(f"{str(path)!r} must take one batch of images [N, 3, S, S], and takes {shapes}.")
    batch, _, height, width = (side if type(side) is int else None for side in shapes[0])
    if height != width:
        raise UnsupportedModel(f"{str(path)!r} takes images of {height} x {width}, and images here are square.")
    return height, batch


_CHANGING_THE_ENVIRONMENT = threading.Lock()


@contextmanager
def _weights_only() -> Iterator[None]:
    # torch.export.load falls back to unpickling anything where tensors alone would not do, unless this forbids it.
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _CHANGING_THE_ENVIRONMENT:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
