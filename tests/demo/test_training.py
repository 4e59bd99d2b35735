"""The training loop of the demo."""

import torch
from torch import nn
from torch.testing import assert_close

from torchrelabel.demo.training import predict, train


class Points(torch.utils.data.Dataset):
    """Two classes of points that a line parts, with a random number drawn for each as a transform would."""

    def __init__(self, soft=False):
        self.soft = soft
        self.drawn = []

    def __len__(self):
        return 70

    def __getitem__(self, index):
        label = index % 2
        self.drawn.append((index, torch.rand(()).item()))
        target = torch.eye(2)[label] if self.soft else label
        return torch.tensor([2.0 * label - 1, index / 70]), target


def trained(dataset, seed=0, **options):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    return model, train(
        model,
        dataset,
        epochs=3,
        batch_size=8,
        learning_rate=0.05,
        seed=seed,
        criterion=nn.CrossEntropyLoss(),
        workers=0,
        **options,
    )


def test_it_learns():
    model, run = trained(Points())
    assert run.losses[-1] < 0.6 * run.losses[0]
    assert predict(model, torch.tensor([[1.0, 0.3], [-1.0, 0.3]])).tolist() == [1, 0]


def test_one_seed_means_one_order_and_the_same_random_numbers():
    hard, soft = Points(), Points(soft=True)
    trained(hard, seed=5)
    trained(soft, seed=5)
    assert hard.drawn == soft.drawn


def test_another_seed_means_another_order():
    first, second = Points(), Points()
    trained(first, seed=5)
    trained(second, seed=6)
    assert [index for index, _ in first.drawn] != [index for index, _ in second.drawn]


def test_a_soft_one_hot_label_teaches_what_a_class_index_does():
    hard, soft = trained(Points())[0], trained(Points(soft=True))[0]
    assert_close(hard.weight, soft.weight)


def test_the_test_after_each_epoch_is_kept_and_told():
    told = []
    _, run = trained(Points(), test=lambda model: 0.25, on_epoch=lambda *what: told.append(what))
    assert run.scores == [0.25] * 3
    assert told == [(epoch, loss, 0.25) for epoch, loss in zip((1, 2, 3), run.losses, strict=True)]


def test_predictions_leave_dropout_out():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2))
    points = torch.rand(300, 2)
    assert_close(predict(model, points), predict(model, points))
