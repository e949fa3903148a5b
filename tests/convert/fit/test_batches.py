"""The batches of a fit: read again and again, without labels, checked, a part held out."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from leanconv.convert.fit.batches import Batches
from leanconv.errors import BadInput

X = torch.randn(10, 3, 4, 4)
MODEL = nn.Sequential(nn.Conv2d(3, 2, 1))


class Masked(nn.Module):
    def forward(self, image, mask, scale=1.0):
        return image * mask * scale


def test_a_tensor_is_a_set_of_images():
    held, rest, same = Batches(torch.randn(100, 3, 4, 4), MODEL).divided()
    assert (len(held), sum(map(len, rest)), same) == (25, 75, False)
    held, rest, same = Batches(X, MODEL).divided()
    assert torch.equal(torch.cat([held, *rest]), X)
    assert (len(held), same) == (2, False)
    held, rest, same = Batches(X[:1], MODEL).divided()
    assert (len(held), [len(r) for r in rest], same) == (1, [1], True)


def test_batches_of_one_image():
    held, rest, same = Batches(list(X.split(1)), MODEL).divided()
    assert (len(held), [len(r) for r in rest], same) == (2, [1] * 8, False)


def test_small_batches_are_held_out_like_large_ones():
    many = torch.randn(200, 3, 4, 4)
    held, rest, same = Batches(list(many.split(2)), MODEL).divided()
    rest = list(rest)
    assert (len(held), {len(r) for r in rest}, same) == (64, {2}, False)
    assert torch.equal(torch.cat([held, *rest]), many)


def test_batches_of_another_size_are_not_joined():
    held, rest, same = Batches([X, torch.randn(4, 3, 6, 6)], MODEL).divided()
    assert (len(held), [tuple(r.shape) for r in rest], same) == (5, [(5, 3, 4, 4), (4, 3, 6, 6)], False)


def test_labels_are_left_out_and_arguments_are_not():
    loader = DataLoader(TensorDataset(X, torch.arange(10)), batch_size=5)
    batches = Batches(loader, MODEL)
    assert [[tuple(t.shape) for t in batch] for batch in batches] == [[(5, 3, 4, 4)], [(5, 3, 4, 4)]]
    assert [[tuple(t.shape) for t in batch] for batch in batches] == [[(5, 3, 4, 4)], [(5, 3, 4, 4)]]
    assert batches.notes == ["of a batch's 2 entries the model takes 1; the others (labels) are unused"]
    two = Batches([(X, X, torch.arange(10))], Masked())
    assert [len(batch) for batch in two] == [2]
    assert [len(batch) for batch in Batches([(X, X, 1)], nn.DataParallel(Masked()))] == [2]
    named = Batches({"image": X, "mask": X, "scale": 2.0, "labels": X}, Masked())
    assert [sorted(batch) for batch in named] == [["image", "mask", "scale"]]
    assert "no argument labels" in named.notes[0]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "data holds no batch"),
        (X[:0], "data holds no batch"),
        ([X[:0]], "batch 1 of data holds no image"),
        ([X, X.log()], "batch 2 of data holds NaN or infinite numbers"),
        (iter([X]), "can be read once only"),
        ((x for x in [X]), "can be read once only"),
        (TensorDataset(X), "a set of single images"),
        (["a.png"], "batch 1 of data is a str"),
        ([{"x": X}], "batch 1 of data names x, and the model takes none of these; its arguments: input"),
        ("DIR", "data is a str"),
        (3, "data is a int"),
        (torch.tensor(1.0), "single number"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_data(data, text):
    with pytest.raises(BadInput, match=text) as caught:
        list(Batches(data, MODEL))
    assert "\n" not in str(caught.value)


def test_a_data_set_that_fails_is_bad_input():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError("no such file: 7.png")

    with pytest.raises(BadInput, match=r"data cannot be read: OSError: no such file: 7.png"):
        list(Batches(DataLoader(Broken()), MODEL))


def test_a_shuffling_loader_gives_one_order_in_each_pass():
    loader = DataLoader(TensorDataset(torch.arange(40.0).view(40, 1, 1, 1)), batch_size=8, shuffle=True)
    batches = Batches(loader, nn.Sequential(nn.Conv2d(1, 2, 1)))
    passes = []
    for _ in range(3):
        torch.rand(7)  # what a pass draws in between
        passes.append([float(v) for (batch,) in batches for v in batch.flatten()])
    assert passes[0] == passes[1] == passes[2]
    assert passes[0] != sorted(passes[0])


def test_a_bare_tuple_says_what_it_may_mean():
    with pytest.raises(BadInput, match=r"write \[\(x, y\)\] for one batch"):
        Batches((X, X), MODEL)
