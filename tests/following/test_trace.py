"""What a trace keeps of the images of a sample, and what it does not."""

from __future__ import annotations

import gc
import weakref

import torch
from torchvision import transforms as v1

from torchrelabel import ViewBox
from torchrelabel.following import follow
from torchrelabel.following.trace import Canvas, CropTrace


def test_an_image_that_a_step_has_replaced_is_not_kept_in_memory() -> None:
    """The pixels of a decoded photograph are as large as fifty crops; a batch of them filled the memory of workers."""
    seen: list[weakref.ref[torch.Tensor]] = []
    gone = []

    class Watch(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            gc.collect()
            gone.append([earlier() is None for earlier in seen])
            seen.append(weakref.ref(image))
            return image

    pipeline = v1.Compose([v1.RandomCrop(9), Watch(), v1.Resize(5), Watch(), v1.RandomHorizontalFlip(1), Watch()])
    assert follow(pipeline, torch.zeros(3, 20, 10)).canvas_size == (5, 5)
    assert gone == [[], [True], [True, True]]


def test_an_image_of_an_earlier_view_is_known_for_one() -> None:
    trace = CropTrace()
    trace.begin((10, 20))
    whole, crop = torch.zeros(3, 10, 20), torch.zeros(3, 5, 5)
    trace.note(whole)
    number = trace.see(
        trace.number, lambda canvas: canvas.with_view(canvas.view_box.crop(0, 0, 0.25, 0.5), (5, 5)), crop=True
    )
    trace.note(crop)
    assert (trace.noted(whole), trace.noted(crop), trace.noted(torch.zeros(3, 5, 5))) == (0, number, None)
    assert trace.canvas(0) == Canvas(ViewBox(), (10, 20))
    assert trace.canvas() == Canvas(ViewBox(0, 0, 0.25, 0.5), (5, 5))
    assert not trace.ambiguous
    trace.accept(whole, "a step")
    assert trace.ambiguous


def test_what_was_done_to_an_image_is_worked_out_once_and_when_it_is_asked_for() -> None:
    trace, asked = CropTrace(), []

    def flip(canvas: Canvas) -> Canvas:
        asked.append(canvas)
        return canvas.with_view(canvas.view_box.flip_x())

    trace.begin((10, 20))
    trace.see(trace.number, flip, crop=False)
    trace.see(trace.number, flip, crop=False)
    assert not asked
    assert trace.view == ViewBox()
    assert trace.size == (10, 20)
    assert len(asked) == 2
