"""fold_: what is folded computes the same, what may not be folded is not, whatever the BatchNorm's numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.convert import apply_, fold_, plan
from leanconv.errors import BadInput
from leanconv.nn import make

X = torch.randn(2, 3, 12, 10)


@torch.no_grad()
def trained(model):
    """Eval mode, with statistics and affine that are anything but the identity."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3.0)
            if module.weight is not None:
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


def assert_folds(model, x, layers, tolerance=1e-12):
    """In float64 the outputs stay, and exactly the named layers absorb something."""
    model, x = trained(model.double()), x.double()
    expected = model(x)
    report = fold_(model, x)
    assert [fold.layer for fold in report.done] == layers, str(report)
    assert torch.allclose(model(x), expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))
    assert all(fold.certificate < 1e-12 for fold in report.done)
    assert not layers or report.certificate < 1e-11
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return report


class Block(nn.Module):
    """A residual block: both convolutions fold, and the shortcut's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8, affine=False)
        self.short = nn.Sequential(nn.Conv2d(3, 8, 1, 2), nn.Dropout(0.3), nn.Identity(), nn.BatchNorm2d(8))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return y


def test_a_residual_block():
    model = Block()
    report = assert_folds(model, X, ["conv1", "conv2", "short.0"])
    assert isinstance(model.norm1, nn.Identity)
    assert report.refused == []
    assert "3 folded, 0 not" in str(report)
    assert str(report).splitlines()[0].split()[2:4] == ["certificate", "allowed"]  # the limit stands beside its value
    assert report.to_dict()["folds"][0] == {
        "layer": "conv1",
        "what": "BatchNorm2d norm1",
        "certificate": report.folds[0].certificate,
        "allowed": 1e-6,
        "reason": "",
    }
    again = fold_(model, X.double())
    assert (len(again), str(again)) == (0, "nothing to fold")


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), X),
        (nn.ConvTranspose2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), X),
        (nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4), X.repeat(1, 2, 1, 1)),
        (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), X[..., 0]),
        (nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8), X[..., None]),
        (nn.Linear(3, 8), nn.BatchNorm1d(8), X[..., 0, 0]),
        (nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), X),
        (make("conv", 3, 8, 3), nn.BatchNorm2d(8), X),
        (make("depthwise_separable", 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), X),
        (make("hetconv(part=2)", 6, 8, 3), nn.BatchNorm2d(8), X.repeat(1, 2, 1, 1)),
        (make("group_pointwise(part=3)", 3, 8, 3), nn.BatchNorm2d(8), X),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_layers_that_absorb_their_norm(layer, norm, x):
    model = nn.Sequential(layer, norm, nn.ReLU())
    assert_folds(model, x, ["0"])
    assert isinstance(model[1], nn.Identity)


def test_operators_fold_by_themselves_too():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        make("splconv", 8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        make("spconv", 8, 8, 3, padding=1),
        make("spconv", 8, 8, 3, 2, 1),
        make("conv", 8, 4, 1),
    )
    report = assert_folds(model, X, ["1", "4", "5", "6"])
    assert report.done[0].what == "splconv's own algebra"
    assert "cannot absorb it exactly" in report.refused[0].reason
    assert type(model[6]) is nn.Conv2d
    inside = [m for op in (model[1], model[4], model[5]) for m in op.modules()]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in inside)
    fold_(model, X.double())


def test_timm_norm_with_activation():
    timm_norm = pytest.importorskip("timm.layers").BatchNormAct2d
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        timm_norm(8),
        nn.Conv2d(8, 8, 3),
        timm_norm(8, apply_act=False),
        nn.Conv2d(8, 4, 3),
        timm_norm(4, act_layer=nn.SiLU, drop_layer=nn.Dropout),
    )
    assert_folds(model, X, ["0", "2", "4"])
    assert [type(m).__name__ for m in model][1::2] == ["ReLU", "Identity", "Sequential"]


def test_frozen_norms():
    ops = pytest.importorskip("torchvision.ops")
    assert_folds(nn.Sequential(nn.Conv2d(3, 8, 3), ops.FrozenBatchNorm2d(8)), X, ["0"])


class Pair(nn.Module):
    """A convolution and a BatchNorm; what happens between them is the test's."""

    def __init__(self, forward, **extra):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.other = nn.Conv2d(8, 8, 1)
        self.between = forward

    def forward(self, x):
        return self.between(self, x)


class Slotted:
    """An answer whose parts cannot be listed."""

    __slots__ = ("feature",)

    def __init__(self, feature):
        self.feature = feature


def _kept(self, x):
    self.feature = self.conv(x)
    return self.norm(self.feature)


def _residual(self, x):
    y = self.conv(x)
    return self.norm(y) + y


def _in_place_before(self, x):
    return self.norm(F.relu(self.conv(x), inplace=True))


def _in_place_after(self, x):
    y = self.conv(x)
    z = self.norm(y)
    return z + y.relu_()


def _view(self, x):
    return self.norm(self.conv(x).view(x.shape[0], 8, -1, 1))


def _twice_conv(self, x):
    return self.norm(self.conv(x)) + F.relu(self.conv(x))


def _twice_norm(self, x):
    return self.norm(self.conv(x)) + self.norm(self.other(x.mean(1, True).expand(-1, 8, -1, -1)))


def _before(self, x):
    return self.other(self.norm(F.relu(self.conv(x))))


@pytest.mark.parametrize(
    ("between", "text"),
    [
        (_kept, "returned or kept"), (lambda self, x: (self.norm(y := self.conv(x)), y), "returned or kept"),
        (_residual, "also read by add"), (_in_place_before, "also read by relu_"),
        (_in_place_after, "also read by add, relu_"), (_view, "does not follow"),
        (lambda self, x: self.norm(y := self.conv(x)) + self.other(y), "also read by convolution"),
        (lambda self, x: self.norm(y := self.conv(x)) + float(y.detach().sum()), "also read by detach"),
        (lambda self, x: [self.norm(self.conv(x)[:, :]), 1], "does not follow"),
        (_twice_conv, "is called 2 times"), (_twice_norm, "called 2 times"), (_before, "does not follow"),
        (lambda self, x: self.conv(x), "never called"),
        (lambda self, x: self.norm(x.repeat(1, 3, 1, 1)[:, :8]), "does not follow"),
        (lambda self, x: (self.norm(y := self.conv(x)), Slotted(y)), "returned or kept"),
        (lambda self, x: (self.norm(y := self.conv(x)), lambda: y), "returned or kept"),
    ],
)  # fmt: skip
def test_what_may_not_be_folded(between, text):
    model = trained(Pair(between))
    before = copy.deepcopy(model.state_dict())
    report = fold_(model, X)
    assert len(report) == 0
    assert text in report.refused[0].reason
    assert report.refused[0].layer == "norm"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert type(model.norm) is nn.BatchNorm2d
    assert text in str(report)


@pytest.mark.parametrize(
    "between",
    [
        lambda self, x: self.norm(self.conv(x)).relu_(),
        lambda self, x: {"a": [self.norm(self.conv(x))], "b": None},
        lambda self, x: self.other(self.norm(F.dropout(self.conv(x), 0.5, training=False))),
        lambda self, x: self.norm(self.conv(x)) + x.mean(),
    ],
)
def test_what_may_be_folded(between):
    report = fold_(trained(Pair(between)), X)
    assert [fold.layer for fold in report.done] == ["conv"]


class Clamped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).clamp(-0.1, 0.1)


class Flipped(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(-x)


def _hooked(conv):
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("conv", "norm", "text"),
    [
        (Clamped(3, 8, 3), nn.BatchNorm2d(8), "certificate fails"),
        (nn.Conv2d(3, 8, 3), Flipped(8), "unknown subclass"),
        (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), "no running statistics"),
        (_hooked(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), "the layer before it: has hooks"),
        (nn.Conv2d(3, 8, 3), _hooked(nn.BatchNorm2d(8)), "has hooks"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), "parametrized"),
        (nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True), None),
        (make("depthwise_separable(block=True)", 3, 8, 3), nn.BatchNorm2d(8), "cannot absorb"),
    ],
)
def test_layers_that_cannot_fold(conv, norm, text):
    model = trained(nn.Sequential(conv, norm))
    expected = model(X)
    report = fold_(model, X)
    assert [type(m) for m in model][1] is type(norm)
    assert torch.allclose(model(X), expected, atol=1e-5)
    assert [text in fold.reason for fold in report.refused] == ([True] if text else [])


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(6, 8), nn.BatchNorm1d(5), (2, 5, 6)),  # the norm's channels are the words, not the features
        (nn.Conv2d(3, 8, 3), nn.BatchNorm1d(10), (3, 12, 9)),  # no batch dimension: they are the rows
        (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(4), (3, 6)),
    ],
)
def test_a_norm_over_another_axis_is_not_folded(layer, norm, shape):
    model, x = nn.Sequential(layer, norm), torch.randn(shape)
    report = fold_(trained(model), x)
    assert len(report) == 0
    assert "cannot absorb" in report.refused[0].reason


def test_tied_weights_are_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    report = fold_(trained(model), X)
    assert (len(report), report.refused[0].reason) == (0, "the layer before it: tied weight")


def test_a_weight_that_is_read_elsewhere_is_caught_by_the_certificate():
    """Observation sees tensors between layers, not a weight used by hand; the trial on the copy does."""

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.norm1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.conv, self.norm2 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm2(self.conv(self.norm1(self.good(x)))) * F.conv2d(x, self.conv.weight)

    model = trained(ByHand())
    expected = model(X)
    report = fold_(model, X)
    assert [fold.layer for fold in report.done] == ["good"]
    assert report.refused[0].layer == "conv"
    assert report.refused[0].reason == "the outputs of the model would change"
    assert torch.allclose(model(X), expected, atol=1e-4 * float(expected.detach().abs().max()))


def test_a_norm_held_outside_the_tree_is_not_replaced():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.order = [self.conv, self.norm]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x

    model = trained(Hidden())
    expected = model(X)
    assert len(fold_(model, X)) == 0
    assert torch.equal(model(X), expected)


def test_eval_mode_is_needed():
    model = trained(Block())
    model.norm2.train()
    with pytest.raises(BadInput, match=r"its layer 'norm2' is in training mode; call model\.eval\(\)"):
        fold_(model, X)
    with pytest.raises(BadInput, match="the model is in training mode"):
        fold_(model.train(), X)


def test_inputs_that_certify_nothing():
    model = trained(Block())
    with pytest.raises(BadInput, match="no tensor with elements"):
        fold_(model, X[:0])
    with pytest.raises(BadInput, match="does not run"):
        fold_(model, X[:, :2])
    assert type(model.norm1) is nn.BatchNorm2d


@torch.no_grad()
def test_weights_that_were_made_in_inference_mode():
    with torch.inference_mode():
        model = trained(Block())
    expected = model(X)
    assert len(fold_(model, X)) == 3
    torch.testing.assert_close(model(X), expected)


def test_other_dtypes():
    model = trained(Block().bfloat16())
    expected = model(X.bfloat16())
    report = fold_(model, X.bfloat16())
    assert (len(report), report.dtype) == (3, "float64")  # certified in float64, done in bfloat16
    assert (model(X.bfloat16()) - expected).abs().max() <= 0.05 * expected.abs().max()

    class Casting(Block):
        def forward(self, x):
            return super().forward(x.float())

    assert (len(report := fold_(trained(Casting()), X)), report.dtype) == (3, "float32")


def test_a_fold_that_would_overflow_is_refused():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=1e-12)).half())
    model[1].running_var.fill_(1e-7)
    model[1].weight.data.fill_(1000.0)
    model[0].weight.data.fill_(1.0)
    report = fold_(model, X.half())
    assert "overflow" in report.refused[0].reason


def test_random_generators_and_state_are_left_alone():
    model = trained(Block())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.conv1.register_forward_hook(lambda *_: None)
    model.conv2.register_forward_hook(lambda *_: None)
    model.short[0].register_forward_hook(lambda *_: None)
    assert len(fold_(model, X)) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_after_a_swap():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    applied = apply_(model, plan(model, X, to="hetconv"))
    assert_folds(model, X, ["0", "3"])
    with pytest.raises(BadInput, match="'3' was replaced or folded after this swap"):
        applied.undo_()
    assert type(model[4]) is nn.Identity


class Masked(nn.Module):
    """A head whose answer has a mark where there is nothing; `shares` the weight with a second, mirrored reading."""

    def __init__(self, mark, shares):
        super().__init__()
        self.conv, self.norm, self.mark, self.shares = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), mark, shares

    def forward(self, x):
        y = self.norm(self.conv(x))
        y = y + F.conv2d(x.flip(3), self.conv.weight, padding=1) if self.shares else y
        return y.masked_fill(x[:, :1] > 1, self.mark)


MARKS = [-1e9, -1e4, torch.finfo(torch.float32).min, -float("inf"), float("nan")]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_in_the_answer_neither_hides_a_wrong_fold_nor_blocks_a_right_one(mark):
    wrong, right = trained(Masked(mark, shares=True)), trained(Masked(mark, shares=False))
    report = fold_(wrong, X)
    assert [fold.reason for fold in report.folds] == ["the outputs of the model would change"], str(report)
    report = fold_(right, X)
    assert [fold.layer for fold in report.done] == ["conv"], str(report)


def test_a_wrong_fold_shows_beside_a_large_output():
    class Two(Masked):
        def forward(self, x):
            return torch.cat([1e7 * x, super().forward(x)], 1)

    assert not fold_(trained(Two(0.0, shares=True)), X).done
    assert len(fold_(trained(Two(0.0, shares=False)), X)) == 1


@pytest.mark.parametrize("example", [torch.zeros_like(X), torch.full_like(X, 0.5)], ids=["zeros", "grey"])
def test_an_example_without_contrast_hides_no_wrong_fold(example):
    assert not fold_(trained(Masked(0.0, shares=True)), example).done
    assert len(fold_(trained(Masked(0.0, shares=False)), example)) == 1
