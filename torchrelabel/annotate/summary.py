"""Summary: what a run of annotate did, and what it has to say."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tqdm import tqdm

from torchrelabel.annotate.calibrate import CropFit
from torchrelabel.folders import printable


@dataclass
class Summary:
    """What a run did. Of a distributed run, what this rank did.

    Attributes:
        output: The store.
        images: Images in the folder (of this rank's shards).
        annotated: Annotated now.
        already_there: Annotated by an earlier run.
        failed: Key and reason of every image that could not be annotated. Those whose names no store can hold belong to
            no shard, and are rank 0's.
        left_out: How many files of the folder are no images, by their extensions.
        exif_turned: Of the images annotated now, how many have an EXIF orientation that turns or mirrors them.
        deep: Of the images annotated now, how many have 16 bits a channel, scaled to 8.
        notes: What else is worth knowing: folders that could not be read, warnings of PIL's.
        model: The annotator's name.
        grid: ``(h, w)`` in cells, or in windows.
        windows: How many windows along each side stand for the cells; None where cells are the model's own.
        num_classes: C.
        top_k: K.
        bytes: Size of the store on disk (of this rank's shards).
        seconds: Time for images and store, without building the model.
        agreement: Of the images annotated now, the share whose pooled map has its highest score at the index of their
            class folder; None unless there are as many folders as classes.
        agreement_renumbered: The same, if the folders were numbered as the other of timm and torchvision numbers them;
            None where both number them alike.
        crop_fit: How near the labels of random crops are to the annotator's own view of them, where this run fitted
            them.
        rank: Number of this process among those that torchrun started.
        world: How many these are; 1 without torchrun.
    """

    output: str
    images: int = 0
    annotated: int = 0
    already_there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    exif_turned: int = 0
    deep: int = 0
    notes: list[str] = field(default_factory=list)
    model: str = ""
    grid: tuple[int, int] = (0, 0)
    windows: int | None = None
    num_classes: int = 0
    top_k: int = 0
    bytes: int = 0
    seconds: float = 0.0
    agreement: float | None = None
    agreement_renumbered: float | None = None
    crop_fit: CropFit | None = None
    rank: int = 0
    world: int = 1

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk per label map, whoever wrote it; 0 without any."""
        maps = self.annotated + self.already_there
        return self.bytes / maps if maps else 0.0

    @property
    def images_per_second(self) -> float:
        """Images annotated now, per second."""
        return self.annotated / self.seconds if self.seconds else 0.0


class Notes:
    """Keep what is worth knowing for the summary, and say it at once.

    Args:
        summary: It gets the notes.
        loud: Whether they are written to stderr, and progress is shown.
    """

    def __init__(self, summary: Summary, loud: bool) -> None:
        self.summary = summary
        self.loud = loud

    def __call__(self, text: str) -> None:
        """Say something, once."""
        self.summary.notes.append(text)
        if self.loud:
            # Names of files need not be text that the terminal can show.
            tqdm.write(printable(text), file=sys.stderr)
