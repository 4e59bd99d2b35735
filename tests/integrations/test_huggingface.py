"""Functions for datasets' set_transform give soft labels of their crops, and losses for transformers take them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from torchvision import transforms
from torchvision.transforms import v2

from tests.painted import WRONG, C, Painted, label_error, paint
from torchrelabel import (
    CropNotSeen,
    LabelPooling,
    LabelStore,
    LabelStoreWriter,
    MissingLabelMap,
    RandomResizedCropWithLabelMap,
)
from torchrelabel.errors import StoreError
from torchrelabel.integrations.huggingface import model_loss, relabel_transform, soft_loss

AUGMENT = transforms.Compose(
    [transforms.RandomResizedCrop((32, 48)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
)


def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
    """What image classification scripts do."""
    batch["pixel_values"] = [AUGMENT(image.convert("RGB")) for image in batch["image"]]
    return batch


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    return paint(tmp_path_factory.mktemp("painted"), each=2)


def decoded(painted: Painted, count: int | None = None, root: Path | None = None) -> dict[str, Any]:
    """A batch as datasets decodes it: images that know their files."""
    images = []
    for key in painted.keys[:count]:
        with PIL.Image.open((root or painted.root) / key) as image:
            image.load()
        images.append(image)
    return {"image": images, "label": [int(key[:3]) for key in painted.keys[:count]]}


def undecoded(painted: Painted, name: Any = str, count: int | None = None) -> dict[str, Any]:
    """A batch as datasets gives it with Image(decode=False), of images kept as bytes."""
    images = [{"bytes": (painted.root / key).read_bytes(), "path": name(key)} for key in painted.keys[:count]]
    return {"image": images, "label": [0] * len(images)}


def error(result: Any) -> float:
    """The mean error of the labels of a batch."""
    pairs = zip(result["pixel_values"], result["label"], strict=True)
    errors = [label_error(image, label) for image, label in pairs]
    return sum(errors) / len(errors)


# relabel_transform: labels


def test_labels_are_those_of_the_crops(painted: Painted) -> None:
    assert error(relabel_transform(preprocess, painted.store)(decoded(painted))) <= WRONG


def test_pixels_and_random_numbers_are_those_of_the_function_itself(painted: Painted) -> None:
    results = []
    for fn in (preprocess, relabel_transform(preprocess, painted.store)):
        torch.manual_seed(3)
        results.append((torch.stack(fn(decoded(painted))["pixel_values"]), torch.rand(1)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_columns_that_the_function_leaves_alone_come_back_as_they_were(painted: Painted) -> None:
    batch = {**decoded(painted, 3), "name": ["a", "b", "c"]}
    result = relabel_transform(preprocess, painted.store)(batch)
    assert list(result) == ["image", "label", "name", "pixel_values"]
    assert result["name"] == ["a", "b", "c"]
    assert all(ours is theirs for ours, theirs in zip(result["image"], batch["image"], strict=True))


def test_the_batch_given_is_not_changed(painted: Painted) -> None:
    batch = decoded(painted, 2)
    relabel_transform(preprocess, painted.store)(batch)
    assert batch["label"] == [0, 0] and set(batch) == {"image", "label"}


def test_labels_are_lists_of_floats_as_collate_functions_make_tensors_of(painted: Painted) -> None:
    result = relabel_transform(preprocess, painted.store)(decoded(painted, 3))
    labels = torch.tensor([label for label in result["label"]])  # noqa: C416 -- in the words of the scripts
    assert labels.shape == (3, C) and labels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(3))


FORMS = {
    "a tensor": (torch.tensor, torch.Tensor, torch.Tensor),
    "a list of tensors": (lambda labels: [torch.tensor(label) for label in labels], list, torch.Tensor),
    "an array": (np.array, np.ndarray, np.ndarray),
    "a list": (list, list, list),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_in_the_form_that_the_function_gives_them(form: str, painted: Painted) -> None:
    make, kind, kind_of_each = FORMS[form]

    def fn(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.stack([AUGMENT(image.convert("RGB")) for image in batch["image"]])
        return {"pixel_values": pixels, "labels": make(batch["label"])}

    result = relabel_transform(fn, painted.store)(decoded(painted, 3))
    assert result["pixel_values"].shape == (3, 3, 32, 48)
    assert isinstance(result["labels"], kind)
    assert all(isinstance(label, kind_of_each) and len(label) == C for label in result["labels"])
    assert error({"pixel_values": result["pixel_values"], "label": result["labels"]}) <= WRONG


def test_arrays_of_pixels_stay_arrays(painted: Painted) -> None:
    def fn(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = np.stack([AUGMENT(image.convert("RGB")).numpy() for image in batch["image"]])
        return {"pixel_values": pixels, "label": batch["label"]}

    result = relabel_transform(fn, painted.store)(decoded(painted, 3))
    assert isinstance(result["pixel_values"], np.ndarray) and result["pixel_values"].shape == (3, 3, 32, 48)


def test_other_names_of_columns_are_taken(painted: Painted) -> None:
    def fn(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [AUGMENT(image) for image in batch["img"]], "fine": batch["fine"]}

    batch = decoded(painted, 3)
    result = relabel_transform(fn, painted.store, "img", "fine")({"img": batch["image"], "fine": batch["label"]})
    assert error({"pixel_values": result["pixel_values"], "label": result["fine"]}) <= WRONG


def test_crops_kept_as_images_are_plain_ones(painted: Painted) -> None:
    crop = transforms.RandomResizedCrop((32, 48))
    fn = lambda batch: {**batch, "pixel_values": [crop(image) for image in batch["image"]]}  # noqa: E731
    result = relabel_transform(fn, painted.store)(decoded(painted, 3))
    assert {type(image) for image in result["pixel_values"]} == {PIL.Image.Image}
    assert error(result) <= WRONG


def test_a_crop_of_tensors_may_tell_itself(painted: Painted) -> None:
    augment = v2.Compose([v2.ToImage(), RandomResizedCropWithLabelMap((32, 48)), v2.ToDtype(torch.float32, scale=True)])
    fn = lambda batch: {**batch, "pixel_values": [augment(image) for image in batch["image"]]}  # noqa: E731
    assert error(relabel_transform(fn, painted.store)(decoded(painted))) <= WRONG


def test_a_whole_image_is_pooled_on_demand(painted: Painted) -> None:
    fn = lambda batch: {**batch, "pixel_values": list(batch["image"])}  # noqa: E731
    batch = decoded(painted, 3)
    result = relabel_transform(fn, painted.store, crop="full")(batch)
    assert error({"pixel_values": batch["image"], "label": result["label"]}) <= WRONG


def test_a_grid_of_labels_is_flipped_as_the_image_is(painted: Painted) -> None:
    flip = transforms.Compose([transforms.CenterCrop((84, 140)), transforms.RandomHorizontalFlip(p=1.0)])
    fn = lambda batch: {**batch, "pixel_values": [flip(image.convert("RGB")) for image in batch["image"]]}  # noqa: E731
    result = relabel_transform(fn, painted.store, pooling=LabelPooling((3, 5)))(decoded(painted, 1))
    grid = torch.tensor(result["label"][0])
    assert torch.equal(grid.argmax(0), torch.tensor(painted.blocks[painted.keys[0]][:, ::-1].copy()))


def test_a_batch_without_labels_is_left_to_the_function_and_said(painted: Painted) -> None:
    relabelled = relabel_transform(preprocess, painted.store)
    images = decoded(painted, 2)["image"]
    with pytest.warns(UserWarning, match=r"no label column 'label' among \['fine', 'image'\].*label_column="):
        assert relabelled({"image": images, "fine": [1, 2]})["fine"] == [1, 2]


def test_images_alone_are_left_to_the_function(painted: Painted) -> None:
    images = decoded(painted, 2)["image"]
    assert len(relabel_transform(preprocess, painted.store)({"image": images})["pixel_values"]) == 2


# relabel_transform: keys


def test_images_of_bytes_are_found_by_the_path_of_the_undecoded_column(painted: Painted) -> None:
    result = relabel_transform(preprocess, painted.store)(undecoded(painted, lambda key: f"train/{key}"))
    assert error(result) <= WRONG


def test_a_key_may_be_made_of_the_example(painted: Painted) -> None:
    batch = undecoded(painted, lambda key: "")
    batch["file"] = [key.removesuffix(".png") for key in painted.keys]
    relabelled = relabel_transform(preprocess, painted.store, key=lambda example: example["file"] + ".png")
    assert error(relabelled(batch)) <= WRONG


def test_an_undecoded_image_is_not_rotated_as_its_annotator_did_not(painted: Painted) -> None:
    buffer, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn off
    with PIL.Image.open(painted.root / painted.keys[0]) as image:
        image.save(buffer, "PNG", exif=exif)
    batch = {"image": [{"bytes": buffer.getvalue(), "path": painted.keys[0]}], "label": [0]}
    assert error(relabel_transform(preprocess, painted.store)(batch)) <= WRONG


def test_an_image_without_a_path_asks_for_its_key(painted: Painted) -> None:
    batch = {"image": [PIL.Image.new("RGB", (17, 11))], "label": [0]}
    with pytest.raises(TypeError, match=r"does not say which file.*key=\).*cast_column\('image'.*decode=False\)"):
        relabel_transform(preprocess, painted.store)(batch)


def test_a_path_of_which_no_end_is_a_key_is_named(painted: Painted) -> None:
    relabelled = relabel_transform(preprocess, painted.store)
    with pytest.raises(MissingLabelMap, match=r"no map for any end of 'other/001\.class/x\.png'.*key="):
        relabelled(undecoded(painted, lambda _: "other/001.class/x.png", 1))


def test_an_image_of_another_folder_is_not_given_the_map_of_its_namesake(painted: Painted) -> None:
    relabelled = relabel_transform(preprocess, painted.store)
    relabelled(undecoded(painted, lambda key: f"/data/train/{key}", 1))
    with pytest.raises(ValueError, match=r"'/data/val/000\.class/image 0\.png' does not lie in '/data/train/'"):
        relabelled(undecoded(painted, lambda key: f"/data/val/{key}", 1))


def test_a_second_image_without_a_map_is_named_with_near_keys(painted: Painted) -> None:
    relabelled = relabel_transform(preprocess, painted.store)
    relabelled(undecoded(painted, lambda key: f"/data/{key}", 1))
    with pytest.raises(MissingLabelMap, match=r"000\.class/new\.png"):
        relabelled(undecoded(painted, lambda key: "/data/000.class/new.png", 1))


def test_a_path_with_two_keys_is_a_question(painted: Painted, tmp_path: Path) -> None:
    with LabelStoreWriter(tmp_path / "maps", num_classes=C, top_k=1) as writer:
        for key in ("a/x.png", "x.png"):
            writer.put(key, np.ones((1, 3, 5), np.float32), np.zeros((1, 3, 5), int))
    relabelled = relabel_transform(preprocess, tmp_path / "maps")
    with pytest.raises(ValueError, match=r"ends with 2 keys of .*\['a/x.png', 'x.png'\]"):
        relabelled(undecoded(painted, lambda _: "/data/a/x.png", 1))


def test_a_missing_map_may_be_a_one_hot_label(painted: Painted) -> None:
    relabelled = relabel_transform(preprocess, painted.store, missing="onehot")
    batch = {**undecoded(painted, lambda _: "/data/new.png", 2), "label": [4, 2]}
    assert relabelled(batch)["label"] == one_hot(torch.tensor([4, 2]), C).float().tolist()


# relabel_transform: refusals


def test_arguments_in_the_wrong_order_are_told(painted: Painted) -> None:
    with pytest.raises(TypeError, match=r"relabel_transform\(fn, label_maps\); got '"):
        relabel_transform(str(painted.store), lambda batch: batch)  # type: ignore[arg-type]


def test_a_function_without_a_crop_is_refused_unless_it_gives_an_image_that_knows_what_it_shows(
    painted: Painted,
) -> None:
    fn = lambda batch: {**batch, "pixel_values": [image.resize((48, 32)) for image in batch["image"]]}  # noqa: E731
    row = relabel_transform(fn, painted.store)(decoded(painted, 1))
    assert label_error(row["pixel_values"][0], row["label"][0]) < WRONG
    fn = lambda batch: {**batch, "pixel_values": [np.asarray(image) for image in batch["image"]]}  # noqa: E731
    with pytest.raises(CropNotSeen, match=r"No crop was seen.*relabel_transform\(\.\.\., crop='full'\)"):
        relabel_transform(fn, painted.store)(decoded(painted, 1))


def test_several_crops_of_an_image_are_refused(painted: Painted) -> None:
    five = transforms.FiveCrop(24)
    fn = lambda batch: {**batch, "pixel_values": [five(image)[0] for image in batch["image"]]}  # noqa: E731
    with pytest.raises(CropNotSeen, match=r"^five_crop makes several images of one"):
        relabel_transform(fn, painted.store)(decoded(painted, 1))


def test_a_crop_after_the_image_became_a_tensor_is_refused(painted: Painted) -> None:
    augment = transforms.Compose([AUGMENT, lambda image: image[:, :24, :24]])
    fn = lambda batch: {**batch, "pixel_values": [augment(image) for image in batch["image"]]}  # noqa: E731
    with pytest.raises(CropNotSeen, match=r"an image of 24 x 24 pixels \(H x W\), and the one last seen had 32 x 48"):
        relabel_transform(fn, painted.store)(decoded(painted, 1))


@pytest.mark.parametrize(
    "late",
    [
        transforms.RandomResizedCrop((32, 48)),
        transforms.CenterCrop(24),
        transforms.Compose([transforms.ColorJitter(0.1), transforms.RandomCrop((32, 48), padding=16)]),
    ],
    ids=["of a tensor", "to another size", "padded, after jitter"],
)
def test_a_crop_within_a_function_is_followed(painted: Painted, late: Any) -> None:
    """A second crop of the size of the first was not seen, and the label was that of the first."""
    augment = transforms.Compose([AUGMENT, late])
    fn = lambda batch: {**batch, "pixel_values": [augment(image) for image in batch["image"]]}  # noqa: E731
    for number in range(1, 8):
        row = relabel_transform(fn, painted.store)(decoded(painted, number))
        assert label_error(row["pixel_values"][0], row["label"][0]) < 3 * WRONG


def test_a_function_that_drops_the_label_is_refused(painted: Painted) -> None:
    fn = lambda batch: {"pixel_values": [AUGMENT(image) for image in batch["image"]]}  # noqa: E731
    with pytest.raises(ValueError, match=r"returns the columns \['pixel_values'\] and no label"):
        relabel_transform(fn, painted.store)(decoded(painted, 1))


def test_a_function_that_gives_another_number_of_images_is_refused(painted: Painted) -> None:
    fn = lambda batch: {**batch, "pixel_values": [AUGMENT(image) for image in batch["image"] * 2]}  # noqa: E731
    with pytest.raises(TypeError, match="a dict with a list for each column, an entry an image"):
        relabel_transform(fn, painted.store)(decoded(painted, 1))


def test_a_misnamed_image_column_is_refused(painted: Painted) -> None:
    with pytest.raises(ValueError, match=r"no image column 'img' among \['image', 'label'\].*image_column="):
        relabel_transform(preprocess, painted.store, "img")(decoded(painted, 1))


def test_images_that_are_arrays_are_refused(painted: Painted) -> None:
    with pytest.raises(TypeError, match=r"'image' holds ndarray where PIL images were expected"):
        relabel_transform(preprocess, painted.store)({"image": [np.zeros((11, 17, 3))], "label": [0]})


def test_wrong_arguments_are_noticed_at_once(painted: Painted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_classes=10 was asked for, and the label maps have 7 classes"):
        relabel_transform(preprocess, painted.store, num_classes=10)
    with pytest.raises(ValueError, match="missing is 'error' or 'onehot', got 'skip'"):
        relabel_transform(preprocess, painted.store, missing="skip")
    with pytest.raises(ValueError, match="crop is 'auto' or 'full', got 'all'"):
        relabel_transform(preprocess, painted.store, crop="all")
    with pytest.raises(TypeError, match="pooling is a LabelPooling, got NoneType"):
        relabel_transform(preprocess, painted.store, pooling=None)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        relabel_transform(preprocess, tmp_path / "nowhere")


def test_it_can_be_sent_to_a_spawned_worker(painted: Painted) -> None:
    relabelled = pickle.loads(pickle.dumps(relabel_transform(preprocess, LabelStore(painted.store))))
    assert error(relabelled(decoded(painted, 3))) <= WRONG


# soft_loss and model_loss


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, C)


@pytest.fixture
def soft() -> torch.Tensor:
    return torch.rand(6, C).softmax(-1)


def mean_loss(logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    return -(soft * logits.log_softmax(-1)).sum(-1).mean()


LOSSES = {
    "a dict": lambda logits, labels, **kw: soft_loss({"logits": logits}, labels, **kw),
    "an object": lambda logits, labels, **kw: soft_loss(SimpleNamespace(logits=logits), labels, **kw),
    "a tuple": lambda logits, labels, **kw: soft_loss((logits, "hidden states"), labels, **kw),
    "model_loss": lambda logits, labels, **kw: model_loss(labels, logits, SimpleNamespace(), return_dict=True, **kw),
    "model_loss, pooled": lambda logits, labels, **kw: model_loss(
        labels=labels, pooled_logits=logits, config=SimpleNamespace(), **kw
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_soft_labels_is_their_cross_entropy(loss: Any, logits: torch.Tensor, soft: torch.Tensor) -> None:
    torch.testing.assert_close(loss(logits, soft), mean_loss(logits, soft))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_class_indices_is_what_it_was(loss: Any, logits: torch.Tensor) -> None:
    labels = torch.arange(6)
    assert loss(logits, labels) == cross_entropy(logits, labels)


@pytest.mark.parametrize("count", [torch.tensor, int])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_accumulated_losses_sum_to_the_mean_of_all_samples(
    loss: Any, count: Any, logits: torch.Tensor, soft: torch.Tensor
) -> None:
    """Parts of a batch of unequal size, with the count that Trainer makes of their labels."""
    for labels in (soft, torch.arange(6)):
        parts = [(logits[:4], labels[:4]), (logits[4:], labels[4:])]
        items = count(sum(int(part.ne(-100).sum()) for _, part in parts))
        total = sum(loss(*part, num_items_in_batch=items) for part in parts)
        torch.testing.assert_close(total, loss(logits, labels))


def test_the_loss_leaves_the_config_alone(logits: torch.Tensor, soft: torch.Tensor) -> None:
    config = SimpleNamespace(problem_type=None, num_labels=C)
    model_loss(soft, logits, config)
    assert vars(config) == {"problem_type": None, "num_labels": C}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_model_of_other_classes_is_named(loss: Any, soft: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \[6, 7\] and the model's logits \[6, 2\].*num_labels=7"):
        loss(torch.randn(6, 2), soft)


def test_a_batch_without_labels_is_named(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"no labels.*remove_unused_columns=False"):
        soft_loss({"logits": logits}, None)


def test_a_model_without_logits_is_named(soft: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="needs the logits"):
        model_loss(soft)


# with transformers

SMALL = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "image_size": 32, "patch_size": 16},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
}  # fmt: skip
CVT = {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}


def small_model(kind: str, **given: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, num_labels=C, **{**SMALL, "cvt": CVT}[kind], **given)
    torch.manual_seed(0)
    return transformers.AutoModelForImageClassification.from_config(config)


@pytest.mark.filterwarnings("default")  # those of another library
@pytest.mark.parametrize("kind", SMALL)
def test_a_model_of_transformers_calls_its_loss(kind: str, soft: torch.Tensor) -> None:
    model = small_model(kind).eval()
    model.loss_function = model_loss
    pixels = torch.rand(6, 3, 32, 32)
    logits = model(pixels).logits
    torch.testing.assert_close(model(pixels, labels=soft).loss, mean_loss(logits, soft))
    torch.testing.assert_close(model(pixels, labels=torch.arange(6)).loss, cross_entropy(logits, torch.arange(6)))
    assert model.config.problem_type is None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [*SMALL, "cvt"])
@pytest.mark.parametrize("loss", [None, model_loss])
def test_the_problem_type_makes_a_loss_of_the_models_own_refuse_soft_labels(
    kind: str, loss: Any, soft: torch.Tensor
) -> None:
    """Without it they are learnt by binary cross entropy. CvT computes its loss itself, whatever it is given."""
    model = small_model(kind, problem_type="single_label_classification")
    if loss is not None:
        model.loss_function = loss
    pixels = torch.rand(6, 3, 32, 32)
    if kind == "cvt" or loss is None:
        with pytest.raises((ValueError, RuntimeError), match=r"batch_size \(6\)"):
            model(pixels, labels=soft)
    else:
        assert model(pixels, labels=soft).loss.isfinite()
    assert soft_loss(model(pixels), soft).isfinite()
    assert model(pixels, labels=torch.arange(6)).loss.isfinite()  # evaluation


@pytest.mark.filterwarnings("default")
def test_trainer_logs_the_same_with_accumulated_gradients(tmp_path: Path) -> None:
    """A model that tells Trainer's count to its loss: there the unmodified loss is right, too."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    images = torch.rand(12, 3, 32, 32)
    logs = []
    for labels, loss in ((torch.arange(12) % C, None), (one_hot(torch.arange(12) % C, C).float(), soft_loss)):
        options = transformers.TrainingArguments(
            str(tmp_path), gradient_accumulation_steps=3, per_device_train_batch_size=2, logging_steps=1,
            num_train_epochs=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
        collate = lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]}  # noqa: E731
        trainer = transformers.Trainer(small_model("vit"), options, collate, data, compute_loss_func=loss)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    assert len(logs[0]) == 4


def test_a_label_column_of_another_name_is_not_trained_on_unnoticed(painted: Painted) -> None:
    """It was, on class indices, after one warning."""
    batch = decoded(painted, 1)
    batch["labels"] = batch.pop("label")
    fn = lambda batch: {**batch, "pixel_values": [AUGMENT(image) for image in batch["image"]]}  # noqa: E731
    with pytest.raises(ValueError, match=r"no column 'label', .*label_column='labels'"):
        relabel_transform(fn, painted.store)(batch)
    assert len(relabel_transform(fn, painted.store, label_column="labels")(batch)["labels"][0]) == C
