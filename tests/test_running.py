"""Running a user's model: how inputs reach it, which tensors count, and that no trace is left, by one rule."""

import random
import types
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import SUPPORTED_NODES, register_pytree_node

from leanconv.convert import plan
from leanconv.errors import BadInput
from leanconv.measure import profile
from leanconv.measure.counting.record import record
from leanconv.running import as_call, call, run, tensors, untouched, watched
from leanconv.train.data.samples import Sample
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.probe import answer

X = torch.randn(2, 3, 6, 6)


class Meddling(nn.Module):
    """Writes into its own parameters and buffers, replaces some, draws random numbers, merges itself in `train`."""

    def __init__(self):
        super().__init__()
        self.conv, self.frozen, self.merged = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval(), False
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)

    def train(self, mode=True):
        self.merged = self.merged or not mode
        return super().train(mode)

    def forward(self, x):
        self.calls += 1
        self.conv.weight.data.add_(1.0)
        self.conv.bias = nn.Parameter(self.conv.bias.detach() + 1)
        self.late = x.mean()
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return self.frozen(self.conv(x)) * float(x.sum() > 1e9)


def state_of(model):
    values = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    return values, [id(p) for p in model.parameters()], modes, model.merged, drawn


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def left_alone(act):
    model = Meddling()
    model.train()
    model.frozen.eval()
    before = state_of(model)
    act(model)
    return same(state_of(model), before)


RUNS = {
    "profile": lambda model: profile(model, X, budget_s=0),
    "count": lambda model: record(model, X),
    "plan": lambda model: plan(model, X, to="hetconv"),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_trace_in_whichever_room_it_runs(name):
    assert left_alone(RUNS[name])


def test_no_trace_of_a_run_that_fails():
    def act(model):
        with pytest.raises(BadInput, match=r"does not run on inputs \(2, 4, 6, 6\)"), watched(model):
            call(model, torch.randn(2, 4, 6, 6))

    assert left_alone(act)


def test_pictures_of_another_type_than_the_weights_are_named():
    model, bytes_ = nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    with pytest.raises(BadInput, match=r"inputs \(2, 3, 6, 6\) of uint8, where its weights are float32: "):
        call(model, bytes_)
    with pytest.raises(BadInput, match=r"inputs \(2, 5, 6, 6\): "):
        call(model, torch.zeros(2, 5, 6, 6))


def test_no_trace_in_weights_created_in_inference_mode():
    with torch.inference_mode():
        norm = nn.BatchNorm2d(3)
    before = norm.running_mean.clone()
    with untouched(norm), torch.inference_mode():
        norm.running_mean.add_(1)
    assert torch.equal(norm.running_mean, before)


def test_what_cannot_be_compared_stays():
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("wrong", torch.tensor([float("nan"), 1.0]))
    version = model.wrong._version
    with untouched(model):
        pass
    assert torch.equal(model.sparse.to_dense(), torch.eye(3))
    assert model.wrong._version == version


class Lazy(nn.Module):
    """Registers a buffer at its first call, and notes in a plain attribute that it did."""

    def __init__(self):
        super().__init__()
        self.conv, self.built = nn.Conv2d(3, 3, 1), False

    def forward(self, x):
        if not self.built:
            self.register_buffer("grid", torch.linspace(0, 1, x.shape[-1]))
            self.built = True
        return self.conv(x) + self.grid


class Normalising(nn.Module):
    """Takes its scale from the first batch, into a parameter, and notes in a plain attribute that it did."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.ready = nn.Conv2d(3, 3, 1), nn.Parameter(torch.zeros(())), False

    def forward(self, x):
        if not self.ready:
            self.scale.data.fill_(1.0)
            self.ready = True
        return self.conv(x) / self.scale


@pytest.mark.parametrize("name", RUNS)
def test_a_flag_goes_back_with_the_numbers_that_it_is_about(name):
    model = Normalising().eval()
    RUNS[name](model)
    assert not model.ready
    assert model(X).isfinite().all()


@pytest.mark.parametrize("name", RUNS)
def test_a_model_that_builds_a_buffer_at_its_first_call_runs_afterwards(name):
    model = Lazy().eval()
    RUNS[name](model)
    assert [name for name, _ in model.named_buffers()] == []
    assert model(X).shape == X.shape


class Incomparable(torch.Tensor):
    """A tensor that `torch.equal` refuses with a TypeError."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented if func is torch.equal else super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(2).as_subclass(Incomparable), torch.tensor([float("nan")]).expand(3)],
    ids=["subclass", "shared"],
)
def test_an_odd_buffer_keeps_nothing_else_from_being_restored(odd):
    model = nn.Sequential(nn.Module(), nn.BatchNorm2d(3))
    model[0].register_buffer("odd", odd)
    with untouched(model):
        model[1].running_mean.add_(1)
    assert model[1].running_mean.tolist() == [0, 0, 0]
    assert all(m.training for m in model.modules())


def test_a_frozen_layer_stays_frozen_after_an_evaluation():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2).eval(), nn.Dropout())
    images = [(torch.zeros(3, 6, 6, dtype=torch.uint8), torch.zeros(6, 6, dtype=torch.uint8), "a")]
    answer(model, X)
    evaluate(model, _Data(images))
    assert [m.training for m in model] == [True, False, True]


class _Data(list):
    classes = ("background", "defect")

    def __getitem__(self, index):
        return Sample(*super().__getitem__(index))


def test_a_compiled_part_is_seen_by_hooks():
    inner = nn.Conv2d(3, 4, 1)
    model, met = nn.Sequential(torch.compile(inner)), []
    handle = inner.register_forward_hook(lambda *_: met.append(1))
    with watched(model):
        run(model, X)
    handle.remove()
    assert met == [1]


def test_how_inputs_reach_a_model():
    assert as_call(X) == ((X,), {})
    assert as_call([X, 1]) == ((X, 1), {})
    assert as_call(UserDict(x=X)) == ((), {"x": X})
    with pytest.raises(BadInput, match="every key must be a string"):
        as_call({1: X})
    with pytest.raises(BadInput, match="got int"):
        as_call(3)


def test_tensors_of_tuples_dicts_and_plain_objects():
    held = types.SimpleNamespace(logits=X, name="x", more={"aux": [X]})
    assert [t is X for t in tensors((held, None, nn.Linear(1, 1)))] == [True, True]


@dataclass(slots=True)
class Pair:
    """Without a `__dict__`: PyTorch opens it because it is registered."""

    first: torch.Tensor
    second: torch.Tensor


def test_tensors_of_what_pytorch_knows_to_open():
    register_pytree_node(Pair, lambda pair: ([pair.first, pair.second], None), lambda parts, _: Pair(*parts))
    try:
        assert [t is X for t in tensors((deque([X]), Pair(X, X)))] == [True, True, True]
        model = nn.Sequential(OrderedDict(pick=Pick(), conv=nn.Conv2d(3, 2, 1)))
        assert profile(model, (Pair(X, X),), budget_s=0).shape == tuple(X.shape)
    finally:
        SUPPORTED_NODES.pop(Pair)


class Pick(nn.Module):
    def forward(self, pair):
        return pair.first
