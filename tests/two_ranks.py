"""A distributed training loop in the shape of PyTorch's ImageNet example and of torchvision's references.

    torchrun --nproc-per-node 2 tests/two_ranks.py images "" v1 fork           # class indices
    torchrun --nproc-per-node 2 tests/two_ranks.py images maps.lmdb v1 fork    # label maps

Prints the losses of each rank.
"""

import os
import sys

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from torch.utils.data.distributed import DistributedSampler
from torchvision import models
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, RandomResizedCropWithLabelMap, mix_soft

NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pipeline_of(name, soft):
    """That of PyTorch's ImageNet example, or one that crops tensors as torchvision's references can."""
    if name == "v1":
        steps = [v1.RandomResizedCrop(64), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(*NORMALIZE)]
        return v1.Compose(steps)
    crop = RandomResizedCropWithLabelMap if soft else v2.RandomResizedCrop
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([v2.PILToTensor(), crop(64), v2.RandomHorizontalFlip(), to_float, v2.Normalize(*NORMALIZE)])


class Collate:
    """Mixes a batch as torchvision's references do, in their workers."""

    def __init__(self, classes, soft):
        mixers = v2.RandomChoice([v2.MixUp(num_classes=classes), v2.CutMix(num_classes=classes)])
        self.mix = mix_soft(mixers) if soft else mixers

    def __call__(self, batch):
        return self.mix(*default_collate(batch))


def main(root, label_maps, pipeline, method):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    dataset = ImageFolder(root, pipeline_of(pipeline, soft=bool(label_maps)))
    classes = len(dataset.classes)
    if label_maps:
        dataset = LabelMapDataset(dataset, label_maps)
    sampler = DistributedSampler(dataset, shuffle=True)
    collate = Collate(classes, soft=bool(label_maps)) if pipeline == "v2" else None
    loader = DataLoader(
        dataset, 2, sampler=sampler, num_workers=1, multiprocessing_context=method, persistent_workers=True,
        collate_fn=collate, generator=torch.Generator().manual_seed(rank),
    )  # fmt: skip
    model = DistributedDataParallel(models.get_model("shufflenet_v2_x0_5", num_classes=classes))
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.05), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for images, target in loader:
            assert target.is_floating_point() or not label_maps, "labels are soft"
            loss = cross_entropy(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    os.write(1, (" ".join(map(str, (rank, *losses))) + "\n").encode())  # at once: the ranks share the pipe
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
