"""A training script in the shape of timm's train.py that has never heard of label maps."""

import argparse
import multiprocessing
import os
import sys

import torch
from timm import create_model
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import random_seed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-dir")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--start-method")
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--aug-repeats", type=int, default=0)
    parser.add_argument("--no-dataset", action="store_true")
    args = parser.parse_args()
    if args.no_dataset:
        return
    if args.start_method:
        multiprocessing.set_start_method(args.start_method)
    rank = int(os.environ.get("RANK", "0"))
    distributed = "RANK" in os.environ
    if distributed:
        torch.distributed.init_process_group("gloo")
    random_seed(0, rank)
    model = create_model("resnet10t", num_classes=args.num_classes)
    train = create_dataset(
        args.dataset, root=args.data_dir, split=args.train_split, is_training=True, batch_size=2
    )  # fmt: skip
    val = create_dataset("", root=args.val_dir or args.data_dir, split="train", is_training=False)
    mixer = FastCollateMixup(args.mixup, label_smoothing=0.1, num_classes=args.num_classes) if args.mixup else None
    loader = create_loader(
        train, (3, 32, 32), 2, is_training=True, num_workers=args.workers, collate_fn=mixer, device=torch.device("cpu"),
        distributed=distributed, num_aug_repeats=args.aug_repeats, persistent_workers=args.workers > 0,
    )  # fmt: skip
    loss_of = SoftTargetCrossEntropy() if mixer else LabelSmoothingCrossEntropy(0.1)
    losses = [loss_of(model(images), labels).item() for images, labels in loader]
    line = " ".join(map(str, (rank, *losses)))
    os.write(sys.stdout.fileno(), f"{line}\n".encode())  # at once: the ranks share the pipe
    (_, label), *_ = val
    assert isinstance(label, int), "the validation set keeps its class indices"
    # In one write, so that the lines of two ranks stay apart.
    sys.stderr.write(f"script {os.path.basename(sys.argv[0])}\n")
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
