"""What a form is tried on: the caller's own values, and bright, flat, large and small ones made like them."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.engine import optimize
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.workbench import Workbench
from leanconv.nn import make

X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def net(*layers):
    return nn.Sequential(*layers).eval().requires_grad_(False)


NORMS = {
    "a group of each channel": lambda c: nn.GroupNorm(c, c),
    "groups": lambda c: nn.GroupNorm(4, c),
    "one group": lambda c: nn.GroupNorm(1, c, affine=False),
    "instances": lambda c: nn.InstanceNorm2d(c, affine=True),
    "the batch": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_statistics_of_bright_pictures_of_low_contrast(norm):
    model = net(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), make("splconv", 16, 16, 3, padding=1))
    bench = Workbench(model, (X,), {}, 1)
    bench.measuring_s = 0.0
    form, exact = FUSED.prepare(bench, None), copy.deepcopy(model).double()
    for mean, spread in ((200, 20), (128, 1), (100, 0.1)):
        picture = X * spread + mean
        want = exact(picture.double())
        own = (model(picture) - want).abs().max()
        assert (form(picture) - want).abs().max() <= 4 * own + 1e-5, (mean, spread)


def one_pass(model):
    """Its GroupNorm by E[x²] - E[x]²."""

    def form(x):
        y = model[0](x)
        grouped = y.reshape(y.shape[0], 8, -1)
        mean = grouped.mean(2, keepdim=True)
        spread = (grouped.square().mean(2, keepdim=True) - mean.square()).clamp(min=0)
        return ((grouped - mean) / (spread + 1e-5).sqrt()).reshape(y.shape)

    return form


WRONG = {
    "statistics in one pass": (net(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8)), one_pass),
    "right for noise alone": (net(nn.Conv2d(3, 8, 3), nn.ReLU()), lambda model: lambda x: model(x.clamp(-50, 50))),
    "a constant that drowns small inputs": (
        net(nn.Conv2d(3, 8, 3, bias=False)), lambda model: lambda x: model(x + 1e4) - model(torch.full_like(x, 1e4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_form_that_is_right_on_noise_alone_is_not_chosen(case, always, monkeypatch):
    model, wrong = case
    form = wrong(model)
    if case is not WRONG["a constant that drowns small inputs"]:
        assert torch.allclose(form(X), model(X), atol=1e-4)
    monkeypatch.setitem(CANDIDATES, "folded", replace(CANDIDATES["folded"], prepare=lambda bench, dtype: form))
    fast = optimize(model, X, engines=["folded"])
    assert fast.engine == "eager", str(fast.choices)
    assert fast.choices["folded"].note.startswith("differs"), str(fast.choices)


class Detector(nn.Module):
    """Boxes of 0 to 640 and scores of 0 to 1 from one map; bfloat16 loses a score's small difference of large terms."""

    def __init__(self, join):
        super().__init__()
        self.boxes, self.scores, self.join = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), join
        self.scores.bias.data += 60

    def forward(self, x):
        return self.join(640 * self.boxes(x).sigmoid(), (self.scores(x) - 60).mul(3).sigmoid())


JOINS = {
    "apart": lambda boxes, scores: (boxes, scores),
    "channels": lambda boxes, scores: torch.cat([boxes, scores], 1),
    "last axis": lambda boxes, scores: torch.cat([boxes, scores], 1).flatten(2).transpose(1, 2),
    "anchors": lambda boxes, scores: torch.cat([boxes.flatten(1), scores.flatten(1)], 1),
    "a dictionary": lambda boxes, scores: {"boxes": boxes, "scores": scores},
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_scores_that_bfloat16_loses_are_seen_however_they_are_joined(join):
    choices = optimize(net(Detector(join))[0], X, dtype=torch.bfloat16, engines=["folded"]).choices
    assert choices["folded bfloat16"].note.startswith("differs"), str(choices)
    assert not choices["folded"].note.startswith(("differs", "failed")), str(choices)


HEADS = {
    "logits": lambda y: y,
    "softmax": lambda y: (4 * y).softmax(1),
    "rare classes": lambda y: (4 * y - torch.arange(y.shape[1]).view(-1, 1, 1)).softmax(1),
    "scores": lambda y: (5 * y - 4).sigmoid(),
    "a mask": lambda y: y.masked_fill(y[:, :1] > 0.5, -1e9),
    "an added mask": lambda y: y + (y[:, :1] > 0.5) * -1e4,
    "minus infinity": lambda y: y.masked_fill(y[:, 2:3] > 0.5, -torch.inf),
    "one-hot": lambda y: F.one_hot(y.argmax(1), y.shape[1]).float(),
    "labels": lambda y: y.argmax(1),
    "dead channels": lambda y: torch.cat([y, (y - 3.2).relu(), 0 * y], 1),
    "a small part": lambda y: (y, 1e-6 * y),
    "a spectrum": lambda y: torch.fft.rfft2(y),
    "the average": lambda y: y.mean((2, 3)),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_rounding_is_not_taken_for_an_error(head):
    body = net(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            return head(self.body(x))

    choices = optimize(Net().eval(), X, engines=["folded", "channels_last"], dtype=torch.bfloat16).choices
    wrong = [row.label for row in choices if row.note.startswith(("differs", "failed"))]
    hard = {"one-hot", "labels", "a spectrum", "a mask", "an added mask", "minus infinity"}  # thresholds on bfloat16
    assert not [label for label in wrong if head not in map(HEADS.get, hard) or "bfloat16" not in label], str(choices)
