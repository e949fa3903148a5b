"""A trial finds wrong gradients, forgives rounding, and compares what is random without its dice."""

import contextlib
import math

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.running import put_back
from leanconv.train.step.modes import BFLOAT16, Forward, Mode
from leanconv.train.step.trial import Seen, Trial


def net(*more):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *more, nn.Conv2d(8, 1, 3)).train()


def trial(model=None, loss=None):
    return Trial(model or net(), torch.randn(4, 3, 9, 11), loss or (lambda y: y.square().mean()))


class Scaled(Forward):
    """A forward whose result is a little too large: the loss moves twice as far."""

    def __init__(self, model, share):
        super().__init__(model, Mode())
        self.share = share

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * (1 + self.share)


def test_the_same_step_has_no_difference():
    model = net()
    made = trial(model)
    seen = made.difference(Forward(model, Mode()))
    assert (seen.loss, seen.gradient, seen.worst, seen.agrees) == (0, 0, 0, True)


@pytest.mark.parametrize(("share", "agrees"), [(1e-7, True), (2e-6, True), (1e-4, False), (1e-2, False)])
def test_float32_agrees_to_rounding_only(share, agrees):
    model = net()
    seen = trial(model).difference(Scaled(model, share))
    assert seen.agrees == agrees
    assert seen.loss == pytest.approx(2 * share, rel=0.3, abs=3e-7)


def test_one_wrong_parameter_is_named():
    """The loss is right; one small gradient is not."""
    model = net()

    class Wrong(Forward):
        def __call__(self, x):
            bias = model[3].bias
            return super().__call__(x) + 0.01 * (bias - bias.detach())

    seen = trial(model).difference(Wrong(model, Mode()))
    assert not seen.agrees
    assert (seen.name in ("gradient", "3.bias"), seen.loss) == (True, 0)


def test_a_gradient_that_is_missing_or_not_finite_never_agrees():
    model = net()

    class Cut(Forward):
        def __call__(self, x):
            return nn.functional.conv2d(model[:3](x), model[3].weight.detach(), model[3].bias)

    class Nan(Forward):
        def __call__(self, x):
            return super().__call__(x) * float("nan")

    made = trial(model)
    assert not made.difference(Cut(model, Mode())).agrees
    assert not made.difference(Nan(model, Mode())).agrees


def test_both_parts_of_complex_gradients_are_compared():
    class Turned(nn.Conv2d):
        turn = 1.0

        def __init__(self):
            super().__init__(3, 2, 1)
            self.by = nn.Parameter(torch.tensor([1 + 2j]))

        def forward(self, x):
            by = torch.view_as_real(self.by)
            return super().forward(x) * (by[:, 0] + self.turn * (by[:, 1] - by[:, 1].detach()))

    model = Turned().train()
    made = trial(model)
    assert made.difference(Forward(model, Mode())).worst == 0
    model.turn = 1.1
    assert made.difference(Forward(model, Mode())).name in ("by", "gradient")


def test_gradients_made_of_rounding_decide_nothing():
    """The bias before a BatchNorm has none; what float32 leaves of it depends on the order of summation."""
    model = net()
    made = trial(model)

    class Reordered(Forward):
        def __call__(self, x):
            return super().__call__(x.flip(0)).flip(0)

    assert made.difference(Reordered(model, Mode())).agrees


def test_rounding_inside_the_network_is_forgiven_too():
    """The inputs are zero and do not move; the parameters do. What follows is steep."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).train()
    before = [p.detach().clone() for p in model.parameters()]
    made = Trial(model, torch.zeros(2, 3, 4, 4), lambda y: (1e4 * y).sin().square().mean() + 10)
    assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))

    class Rounded(Forward):
        def __init__(self, roundings):
            super().__init__(model, Mode())
            self.factor = 1 + roundings * 2**-23

        def __call__(self, x):
            return super().__call__(x) * self.factor

    seen = made.difference(Rounded(2))
    assert seen.gradient > 1e-3
    assert seen.agrees
    assert not made.difference(Rounded(2000)).agrees


def test_noise_is_the_most_of_three_draws(monkeypatch):
    draws = iter([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    monkeypatch.setattr(Trial, "_moved", lambda self, share: next(draws))
    assert trial(nn.Sequential(nn.Conv2d(3, 4, 1)).train()).noise == [2.0, 1.0, 3.0]


@pytest.mark.parametrize(("share", "agrees"), [(0.02, True), (0.2, False)])
def test_a_parameter_s_noise_is_no_less_than_the_whole_gradient_s(share, agrees, monkeypatch):
    """The draws moved the first weight's gradient, and the whole one by a hundredth; that of the last stood still."""
    model = net()
    made = trial(model)
    whole = math.hypot(*(float(each.norm()) for each in made.expected.gradients))
    made.noise = [0.0, 1e-2 * whole, *[0.0] * (len(made.names) - 1)]
    gradients = [each.clone() for each in made.expected.gradients]
    gradients[-2] *= 1 + share
    monkeypatch.setattr(made, "seen", lambda *given, **named: Seen(made.expected.loss, gradients, False))
    assert made.difference(Forward(model, Mode())).agrees == agrees


def test_bfloat16_agrees_by_its_own_rule_alone():
    model = net()
    made = trial(model)
    seen = made.difference(Forward(model, Mode((BFLOAT16,))))
    assert seen.agrees
    assert 1e-4 < seen.gradient < 5e-2
    half = Forward(model, Mode((BFLOAT16,)))
    half.mode = Mode()  # judged as float32
    half.__class__ = type("Half", (Forward,), {"__call__": lambda self, x: model.bfloat16()(x.bfloat16()).float()})
    assert not made.difference(half).agrees


def steep(roundings):
    """One channel, in whose gradients one rounding of bfloat16 shows so many times."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).train()
    nn.init.constant_(model[0].weight, 1.003)
    return model, Trial(model, torch.full((2, 1, 4, 4), 1.001), lambda y: (roundings * (y - 1)).exp().mean())


class Off(Forward):
    """A mode in bfloat16 whose gradient is off by a share."""

    def __init__(self, model, share, mode=(BFLOAT16,)):
        super().__init__(model, Mode(mode))
        self.share = share

    def __call__(self, x):
        y = self.model(x)
        return y if BFLOAT16 not in self.mode else y.detach() + (1 + self.share) * (y - y.detach())

    def in_float32(self):
        return Forward(self.model, Mode())


@pytest.mark.parametrize(
    ("roundings", "share", "agrees"), [(1, 0.04, True), (1, 0.08, False), (30, 0.08, True), (30, 0.3, False)]
)
def test_what_rounding_itself_moves_is_allowed_in_bfloat16_up_to_a_quarter(roundings, share, agrees):
    model, made = steep(roundings)
    seen = made.difference(Off(model, share))
    assert seen.gradient == pytest.approx(share, rel=1e-3)
    assert seen.agrees == agrees


def test_where_bfloat16_is_asked_for_half_of_the_gradient_is_allowed():
    model, made = steep(300)
    assert not made.difference(Off(model, 0.4)).agrees
    asked = Trial(model, made.args, made.loss, contextlib.nullcontext)
    assert asked.difference(Off(model, 0.4)).agrees
    assert not asked.difference(Off(model, 0.6)).agrees


def test_a_mode_that_is_wrong_in_float32_too_gets_no_room():
    model, made = steep(30)

    class Wrong(Off):
        def in_float32(self):
            return Scaled(model, 1e-2)

    assert made.difference(Off(model, 0.08)).agrees
    assert not made.difference(Wrong(model, 0.08)).agrees


def test_a_step_in_bfloat16_as_given_has_the_rule_of_bfloat16():
    """Autocast in the model's own `forward`, as accelerate puts it there."""
    model = net()
    inside = model.forward
    model.forward = lambda x: torch.autocast("cpu", torch.bfloat16)(inside)(x).float()
    made = trial(model)
    assert made.half
    assert not trial().half

    class Plain(Forward):
        def __call__(self, x):
            return inside(x)

    seen = made.difference(Plain(model, Mode()))
    assert 1e-4 < seen.gradient < 5e-2
    assert seen.agrees


def test_a_mode_s_changes_do_not_widen_what_its_bfloat16_may_differ_by():
    """A change of the model in place, wrong by a fifth, of a model that computes in bfloat16 by itself."""

    class Half(nn.Sequential):
        off = 0.0

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                y = super().forward(x).float()
            return y.detach() + (1 + self.off) * (y - y.detach())

    torch.manual_seed(0)
    model = Half(nn.Conv2d(3, 8, 3)).train()
    made = trial(model)
    assert made.half
    model.off = 0.2
    assert not made.difference(Forward(model, Mode(("channels_last",)))).agrees


def test_who_threw_dice_is_known_where_the_step_is_not_deterministic():
    noise = iter(range(1000))

    class Uneven(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1e-3 * next(noise)

    assert not Trial(Uneven(3, 2, 1).train(), torch.randn(2, 3, 4, 4), lambda y: y.square().mean()).random


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5)])
def test_dropout_is_left_out_of_the_comparison_and_stays_on(layer):
    model = net(layer)
    made = trial(model)
    assert made.random
    assert made.difference(Forward(model, Mode(("channels_last",)))).agrees
    assert layer.training
    assert not trial().random


def test_each_step_begins_with_the_same_buffers():
    """Spectral norm moves its vectors at each step in training; the second mode would see other weights."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).train()
    with put_back(model):
        made = trial(model, lambda y: (y**3).mean())
        for _ in range(5):
            made(made.given)
        assert made.difference(Forward(model, Mode())).worst == 0


def test_a_step_that_does_not_run_is_one_line():
    with pytest.raises(BadInput, match=r"does not run: .*one number"):
        trial(loss=lambda y: y)
    with pytest.raises(BadInput, match=r"does not run: .*one number"):
        trial(loss=lambda y: 3.0)
    with pytest.raises(BadInput, match=r"does not run: RuntimeError"):
        Trial(net(), torch.randn(2, 5, 8, 8), lambda y: y.mean())
    with pytest.raises(BadInput, match=r"the loss is nan"):
        trial(loss=lambda y: (y * float("nan")).sum())
    with pytest.raises(BadInput, match=r"the gradient of 3\.bias is not finite"):
        trial(model := net(), loss=lambda y: y.square().mean() + (0 * model[3].bias).abs().sqrt().sum())
    with pytest.raises(BadInput, match="trainable"):
        trial(net().requires_grad_(False))
