"""What pooling costs: LabelPooling against the dense way of the predecessors, on one thread.

    python benchmarks/pooling.py           # 256 maps of 15 x 15 x 5 of 1000 classes, views of random resized crops

The dense way writes zeros ``[B, C, h, w]``, scatters the scores into them and calls ``roi_align`` once for the whole
batch, as relabel_imagenet and TokenLabeling do. The two differ most where that call takes one sample too many by a
rounding error, which LabelPooling avoids; elsewhere by some 1e-9. The fastest of the repeats counts, since other work
on the machine only ever makes a repeat slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import v2

from torchrelabel import LabelMap, LabelMapBatch, LabelPooling
from torchrelabel.calibration import Calibration
from torchrelabel.pooling import dense_scores


def random_map(top_k: int, num_classes: int, grid: tuple[int, int]) -> LabelMap:
    """A map of random scores, seen through a random resized crop of a 375 x 500 image."""
    classes = torch.rand(num_classes, *grid).argsort(0)[:top_k].int()
    scores = torch.randn(top_k, *grid).mul(3).sort(0, descending=True).values
    whole = LabelMap(
        scores,
        classes,
        num_classes=num_classes,
        canvas_size=(375, 500),
        residual=torch.randn(grid),
        image_scores=torch.randn(num_classes),
        calibration=Calibration((0.6, 0.0, -0.1), (0.6, 0.8, 0.2), 0.08),
    )
    _, seen = v2.RandomResizedCrop(224)(torch.zeros(3, 375, 500, dtype=torch.uint8), whole)
    assert isinstance(seen, LabelMap)
    return seen


def pool_dense_batch(batch: LabelMapBatch, pooling: LabelPooling) -> Tensor:
    """The dense way, in its favour: the right boxes, and one ``roi_align`` call for the batch."""
    h, w = batch.grid
    ends = batch.view_boxes.clamp(0, 1)
    scale = torch.tensor([w, h, w, h])
    box_in_map = (
        torch.cat([torch.minimum(ends[:, :2], ends[:, 2:]), torch.maximum(ends[:, :2], ends[:, 2:])], 1) * scale
    )
    index = torch.arange(len(batch), dtype=torch.float32)[:, None]
    dense = dense_scores(batch, pooling.fill)
    pooled = roi_align(dense, torch.cat([index, box_in_map], 1), pooling.output_size, aligned=True, sampling_ratio=-1)
    if pooling.fill == "auto" and pooling.output_size == (1, 1):
        shown = (ends[:, 2:] - ends[:, :2]).prod(1).abs()
        weights = torch.tensor([batch.calibration.weights(area) for area in shown.tolist()])
        of_image = batch.image_scores[:, :, None, None]
        pooled = weights[:, :1, None, None] * pooled + weights[:, 1:, None, None] * of_image
    return pooling.activate(pooled[:, :, 0, 0] if pooling.output_size == (1, 1) else pooled)


def fastest(call: Callable[[], object], repeats: int, inner: int = 1) -> float:
    """Seconds of the fastest repeat of ``inner`` calls, for one call."""
    call()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(inner):
            call()
        best = min(best, (time.perf_counter() - started) / inner)
    return best


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="label maps in a batch")
    parser.add_argument("--repeats", type=int, default=20, help="timed repeats, of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    maps = [random_map(5, 1000, (15, 15)) for _ in range(arguments.batch)]
    for output_size, size, repeats in ((1, arguments.batch, arguments.repeats), ((14, 14), 8, 3)):
        batch = LabelMapBatch.stack(maps[:size])
        for fill in ("zero", "residual", "auto"):
            pooling = LabelPooling(output_size, fill)
            fast = fastest(lambda: pooling(batch), repeats) / size * 1e6  # noqa: B023 -- called before the next turn
            dense = fastest(lambda: pool_dense_batch(batch, pooling), min(repeats, 5)) / size * 1e6  # noqa: B023
            difference = (pooling(batch) - pool_dense_batch(batch, pooling)).abs().max()
            print(
                f"output_size={output_size!s:8} fill={fill:8} batch {size:3}: {fast:8.1f} us a sample, dense way "
                f"{dense:8.1f} us, {dense / fast:5.0f} times as long; largest difference {difference:.1e}",
                flush=True,
            )
    for fill in ("zero", "residual", "auto"):
        pooling = LabelPooling(fill=fill)
        one = fastest(lambda: pooling(maps[0]), arguments.repeats, inner=100) * 1e6  # noqa: B023
        print(f"output_size=1        fill={fill:8} one map alone: {one:.1f} us")


if __name__ == "__main__":
    main()
