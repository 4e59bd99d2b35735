"""Train an image classifier with the Trainer of Hugging Face's transformers, on a folder read by datasets.

    python examples/huggingface_trainer.py images/train                           # class indices, as ever
    python examples/huggingface_trainer.py images/train --label-maps maps.lmdb    # a soft label for what a crop shows

The changed lines are marked: the import, the transform and the loss. Evaluation stays as it is.
Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, and the interfaces of transformers and datasets.
"""

import argparse
import tempfile

import torch
from datasets import load_dataset
from torchvision import transforms
from transformers import AutoModelForImageClassification, ResNetConfig, Trainer, TrainingArguments

from torchrelabel.integrations.huggingface import relabel_transform, soft_loss  # changed line 1

AUGMENT = transforms.Compose(
    [
        transforms.RandomResizedCrop(64),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)
WHOLE = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), *AUGMENT.transforms[2:]])


def preprocess_train(batch):
    """A random crop of each image."""
    batch["pixel_values"] = [AUGMENT(image.convert("RGB")) for image in batch["image"]]
    return batch


def preprocess_val(batch):
    """The middle of each image."""
    batch["pixel_values"] = [WHOLE(image.convert("RGB")) for image in batch["image"]]
    return batch


def collate(examples):
    """A batch for the model."""
    columns = {name: [example[name] for example in examples] for name in ("pixel_values", "label")}
    return {"pixel_values": torch.stack(columns["pixel_values"]), "labels": torch.tensor(columns["label"])}


def main(data, label_maps=None, epochs=3, batch_size=8, accumulate=1):
    """Train a model, and return what the Trainer logged."""
    train, val = load_dataset("imagefolder", data_dir=data, split="train").train_test_split(0.25, seed=0).values()
    classes = train.features["label"].num_classes
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=classes)
    preprocess = preprocess_train
    if label_maps:
        preprocess = relabel_transform(preprocess, label_maps, num_classes=classes)  # changed line 2
    train.set_transform(preprocess)
    val.set_transform(preprocess_val)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=batch_size, logging_steps=1, report_to="none",
            gradient_accumulation_steps=accumulate, eval_strategy="epoch", save_strategy="no", seed=0,
            remove_unused_columns=False,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = Trainer(
            AutoModelForImageClassification.from_config(config), options, collate, train, val,
            compute_loss_func=soft_loss if label_maps else None,  # changed line 3
            compute_metrics=lambda result: {"accuracy": float((result[0].argmax(1) == result[1]).mean())},
        )  # fmt: skip
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--label-maps")
    parser.add_argument("--epochs", type=int, default=3)
    main(**vars(parser.parse_args()))
