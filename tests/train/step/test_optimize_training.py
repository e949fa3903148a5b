"""optimize_training: it leaves no trace, prefers what is faster and right, and says why others were left out."""

import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.errors import BadInput
from leanconv.kernels import inductor
from leanconv.train.step import modes, race
from leanconv.train.step.modes import CHANGES, Change, dropout_off

BUDGET = 4.0


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 1, 3, padding=1)
    ).train()


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    monkeypatch.setattr(modes, "why_not_compile", lambda device: "there is no compiler")
    monkeypatch.setattr(race, "why_not_compile", lambda device: "there is no compiler")
    monkeypatch.setattr(race, "COMPILE_S", 0.0)
    monkeypatch.setattr(race, "COMPILE_LAYER_S", 0.0)


class Slept:
    """A stand-in for a mode: the model sleeps in it, or outside of it."""

    def __init__(self, model, seconds, factor=1.0):
        self.hook = model.register_forward_hook(lambda *call: time.sleep(seconds) or factor * call[2])

    def remove(self):
        self.hook.remove()


def test_no_trace_is_left():
    model, x = net(), torch.randn(4, 3, 12, 12)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer = torch.optim.AdamW(model.parameters())
    model[4].eval()
    held = {key: (value.clone(), value.data_ptr()) for key, value in model.state_dict(keep_vars=True).items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    fast = lc.optimize_training(model, x, lambda y: y.square().mean(), dtype=torch.bfloat16, budget_s=BUDGET)
    fast.remove()
    for key, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, held[key][0]), key
        assert value.data_ptr() == held[key][1], key
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert not optimizer.state
    assert [m.training for m in model] == [True, True, True, True, False]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def test_the_table_and_the_users_loop():
    torch.manual_seed(1)
    model, x, y = net(), torch.randn(8, 3, 12, 12), torch.randint(0, 2, (8, 1, 12, 12)).float()
    fast = lc.optimize_training(model, x, lambda z: F.binary_cross_entropy_with_logits(z, y), budget_s=BUDGET)
    first = ["eager", "channels_last"]
    # Its norm and activation have a kernel, where there are kernels; the modes after it may have it, too.
    bare = [" ".join(word for word in row.mode.split() if word != "kernels") for row in fast.choices]
    modes = [mode for mode in dict.fromkeys(bare) if mode]
    assert modes in ([*first, compiled, "bfloat16"] for compiled in ("compile", "channels_last compile"))
    assert fast.mode == fast.choices.winner.mode
    assert "there is no compiler" in str(fast.choices)
    assert "not asked for (dtype=torch.bfloat16" in fast.choices["bfloat16"].note
    assert fast.choices["channels_last"].gradient < 1e-4
    assert fast.choices["eager"].peak_bytes > 8 * 8 * 12 * 12 * 4
    assert {row["mode"] for row in fast.choices.to_dict()["modes"]} == {row.mode for row in fast.choices}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = F.binary_cross_entropy_with_logits(fast(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("factor", "wins"), [(1.0, True), (1.01, False)])
def test_the_fastest_wins_if_it_is_right(monkeypatch, factor, wins):
    """Eager sleeps 20 ms longer; the other mode wins only with the same loss."""

    class Quick(nn.Conv2d):
        seconds = 0.02

        def forward(self, x):
            time.sleep(self.seconds)
            return super().forward(x)

    class Awake:
        def __init__(self, model):
            self.model, self.hook = model, model.register_forward_hook(lambda *call: factor * call[2])
            model.seconds = 0.0

        def remove(self):
            self.hook.remove()
            self.model.seconds = 0.02

    monkeypatch.setitem(CHANGES, "channels_last", Change(Awake, lambda model: ""))
    conv = Quick(3, 4, 3).train()
    fast = lc.optimize_training(conv, torch.randn(2, 3, 6, 6), lambda y: y.square().mean(), budget_s=BUDGET)
    assert fast.mode == ("channels_last" if wins else "eager")
    row = fast.choices["channels_last"]
    assert (row.ratio > 1 / 0.7) if wins else ("differs: " in row.note and row.timing is None)
    assert conv.seconds == (0.0 if wins else 0.02)


def test_a_slow_or_broken_mode_is_a_row(monkeypatch):
    def broken(model):
        raise RuntimeError("no such instruction")

    model, x = net(), torch.randn(2, 3, 8, 8)
    monkeypatch.setitem(CHANGES, "channels_last", Change(broken, lambda model: ""))
    fast = lc.optimize_training(model, x, lambda y: y.mean(), budget_s=BUDGET)
    assert "does not run: RuntimeError: no such instruction" in fast.choices["channels_last"].note
    assert fast.mode == "eager"
    monkeypatch.setitem(CHANGES, "channels_last", Change(lambda m: Slept(m, 0.1), lambda model: ""))
    fast = lc.optimize_training(model, x, lambda y: y.mean(), budget_s=BUDGET)
    assert "slow: " in fast.choices["channels_last"].note
    assert fast.mode == "eager"


def test_the_budget_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(race, "COMPILE_S", 1e4)  # it compiles with dropout, and without for the comparison
    fast = lc.optimize_training(net(), torch.randn(2, 3, 8, 8), lambda y: y.mean(), budget_s=BUDGET)
    (row,) = [row for row in fast.choices if "compile" in row.mode]
    assert row.note.startswith("left out: some 20000 s more than the budget allows")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.eval(), "call model.train"),
        (lambda m: torch.compile(m, backend="eager"), "compiled already"),
        (lambda m: m.append(nn.LazyConv2d(2, 1)), "lazy"),
        (lambda m: F.relu, "torch.nn.Module, got function"),
    ],
)
def test_what_cannot_be_raced_is_refused_in_one_line(change, says):
    with pytest.raises(BadInput, match=says) as caught:
        lc.optimize_training(change(net()), torch.randn(2, 3, 8, 8), lambda y: y.mean())
    assert "\n" not in str(caught.value)


def test_settings_that_make_no_sense():
    for options in ({"budget_s": 0}, {"dtype": torch.float16}, {"dtype": "bfloat16"}, {"budget_s": float("nan")}):
        with pytest.raises(BadInput, match=next(iter(options))):
            lc.optimize_training(net(), torch.randn(2, 3, 8, 8), lambda y: y.mean(), **options)


@pytest.mark.slow
def test_torch_compile_for_certain(monkeypatch):
    """Inductor's gradients, those of the user's own backward, and a last batch of another size."""
    monkeypatch.setattr(race, "why_not_compile", inductor.why_not)
    monkeypatch.setattr(race, "HOPELESS", 1e9)
    model, x = net(), torch.randn(4, 3, 12, 12)
    fast = lc.optimize_training(model, x, lambda y: y.square().mean(), budget_s=300)
    (row,) = [row for row in fast.choices if "compile" in row.mode]
    assert row.gradient < 1e-4, row
    assert row.timing is not None, row
    forward = modes.Forward(model, modes.Mode(("compile",)), x)
    with dropout_off(model):  # PyTorch 2.11 compiles for another memory format, and dropout's numbers follow it
        model(x).square().mean().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        forward(x).square().mean().backward()
    for own, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(own.grad, other, rtol=1e-4, atol=1e-6)
    assert forward(x[:3]).shape == (3, 1, 12, 12)
