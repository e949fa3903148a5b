"""Callers and models that nobody thought of: the right answer, or one clear error."""

import functools
import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from leanconv.deploy.verify import difference
from leanconv.engine import optimize
from leanconv.errors import BadInput

SIZE = (2, 3, 9, 7)
Pair = namedtuple("Pair", "a b")


pytestmark = [
    pytest.mark.usefixtures("always"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


RUNTIMES = ("onnxruntime", "openvino")
# A runtime that has refused no tensor yet is called without a look at its size and type.
FASTS = ("fused", *RUNTIMES, *(f"{each}, strict" for each in RUNTIMES))


@functools.cache
def made_by(engine):
    """A model that met its shape, then another: PyTorch computes nothing in it. And how it called its form before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    made = optimize(model, torch.randn(SIZE), engines=(engine,), budget_s=60)
    strict = made.__dict__["_strict"]
    for _ in range(2):
        made(torch.randn(1, *SIZE[1:]))
    assert made.__dict__["_strict"] is None
    return made, strict


@pytest.fixture(params=FASTS)
def fast(request, always):
    engine, _, unmet = request.param.partition(", ")
    made, strict = made_by(engine)
    assert made.engine == engine
    assert (strict is not None) == (engine in RUNTIMES)
    made.__dict__["_strict"] = strict if unmet else None
    return made


class Labelled(Tensor):
    pass


KINDS = {
    "negative views": lambda x: torch._neg_view(x),  # what `.imag` of a conjugate is
    "views over memory": lambda x: torch.randn(900).as_strided(x.shape, (100, 30, 3, 1)),
    "one number": lambda x: torch.ones(1).expand(x.shape),
    "permuted": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "parameters": nn.Parameter,
    "subclasses": lambda x: x.as_subclass(Labelled),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(kind, batch, fast):
    x = KINDS[kind](torch.randn(batch, *SIZE[1:]))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, want = fast(x), fast.original(x).detach()
            assert difference(want, y).ok(1e-4)
            assert type(y) is type(want)


OTHERS = {
    "another batch": lambda x: torch.randn(3, *SIZE[1:]),
    "as many numbers": lambda x: x.reshape(2, 3, SIZE[3], SIZE[2]),
    "flat": lambda x: x.flatten(2),
    "in float64": lambda x: x.double(),
    "whole numbers": lambda x: x.long(),
    "sparse": lambda x: x.to_sparse(),
    "nothing but a size": lambda x: x.to("meta"),
    "no number": lambda x: x[:0],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_sizes_and_types_are_answered_as_by_the_model(kind, fast):
    x = torch.randn(SIZE)
    other = OTHERS[kind](x)
    for _ in range(2):
        try:
            want = fast.original(other).detach()
        except Exception as error:
            with pytest.raises(type(error)):
                fast(other)
        else:
            y = fast(other)
            assert (y.shape, y.dtype, y.device) == (want.shape, want.dtype, want.device)
            assert y.is_meta or difference(want, y).ok(1e-4)
    assert other.is_meta or fast.__dict__["_strict"] is None
    assert difference(fast.original(x).detach(), fast(x)).ok(1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("batch", [1, 2])
def test_transforms_are_refused(batch, fast):
    """They would find no gradient, without a word."""
    x = torch.randn(batch, *SIZE[1:])
    for call in (
        lambda: torch.func.functionalize(fast)(x),  # first: no runtime refuses its tensors, whose memory is no map
        lambda: torch.func.grad(lambda t: fast(t).sum())(x),
        lambda: torch.func.vjp(fast, x),
        lambda: torch.vmap(lambda t: fast(t[None]))(x),
        lambda: torch.no_grad()(torch.vmap(fast))(x[None]),
    ):
        with pytest.raises(BadInput, match=r"torch\.func.*model\.original"):
            call()
    with pytest.raises(BadInput, match="traced"):
        torch.fx.symbolic_trace(fast)
    with pytest.raises(BadInput, match="traced"):
        torch.jit.trace(fast, x)
    with pytest.raises(BadInput, match="traced"):
        torch.jit.trace(lambda t: fast(t) + 1, x)
    with pytest.raises(BadInput, match="exported"):
        torch.export.export(fast, (x,))
    assert fast(x).shape == fast.original(x).shape


@pytest.mark.parametrize("batch", [1, 2])
def test_autocast_and_gradients_are_not_for_it(batch, fast):
    x = torch.randn(batch, *SIZE[1:])
    with torch.no_grad():
        want = fast.original(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fast(x)
    assert y.dtype == torch.float32
    assert difference(want, y).ok(1e-4)
    leaf = x.clone().requires_grad_()
    y = fast(leaf)
    assert not y.requires_grad
    assert difference(want, y).ok(1e-4)


def test_a_default_dtype_decides_nothing(fast):
    torch.set_default_dtype(torch.float64)
    try:
        for size in (SIZE, (1, 3, 8, 8)):
            for _ in range(3):
                x = torch.randn(size, dtype=torch.float32)
                assert difference(fast.original(x).detach(), fast(x)).ok(1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_no_model_and_no_input():
    model = nn.Conv2d(3, 2, 3).eval()
    with pytest.raises(BadInput, match=r"nn\.Module, got function"):
        optimize(lambda x: x, torch.randn(SIZE))
    with pytest.raises(BadInput, match="of the kind Labelled"):
        optimize(model, torch.randn(SIZE).as_subclass(Labelled))
    with pytest.raises(BadInput, match=r"of the kind torch\.sparse_coo"):
        optimize(model, torch.randn(SIZE).to_sparse())
    assert optimize(model, torch._neg_view(torch.randn(SIZE)), engines=("fused",), budget_s=30).engine == "fused"


@dataclass
class Found:
    a: Tensor


class Answers(nn.Module):
    def __init__(self, answer, **state):
        super().__init__()
        self.conv, self.answer = nn.Conv2d(3, 4, 3), answer
        for name, value in state.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.answer(self, self.conv(x))


def counted(m, y):
    m.calls += 1
    return y


def replaced(m, y):
    m.calls = m.calls + 1
    return y


@pytest.mark.parametrize("answer", [counted, replaced])
@pytest.mark.parametrize("engine", ["eager", "folded", "fused"])
def test_a_models_own_state(answer, engine):
    """Optimising leaves it as it was; the model goes on counting."""
    model = Answers(answer, calls=torch.zeros(3)).eval()
    fast = optimize(model, torch.randn(SIZE), engines=(engine,), budget_s=30)
    assert torch.equal(model.calls, torch.zeros(3))
    for size in (SIZE, (1, 3, 8, 8), (1, 3, 8, 8), SIZE):
        x = torch.randn(size)
        assert difference(model(x).detach(), fast(x)).ok(1e-4)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    with pytest.raises(BadInput, match="weights were changed"):
        fast(torch.randn(1, 3, 10, 10))


def test_answers_that_cannot_be_taken_apart():
    for answer, name in ((lambda m, y: Found(y), "Found"), (lambda m, y: {"a": [y, {y}]}, "set")):
        model, x = Answers(answer).eval(), torch.randn(SIZE)
        fast = optimize(model, x, engines=("fused",), budget_s=30)
        assert fast.engine == "eager"
        assert f"has {name} in it" in str(fast.choices)
        assert type(fast(x)) is type(model(x))


def twice(conv, norm):
    return nn.Sequential(nn.Conv2d(3, 6, 1), conv, norm, nn.ReLU(), conv, norm)


def tied():
    layers = [nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)]
    layers[1].weight = layers[0].weight
    return nn.Sequential(nn.Conv2d(3, 6, 1), layers[0], nn.ReLU(), layers[1])


MODELS = {
    "tied weights": tied,
    "shared layers": lambda: twice(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)),
    "named tuples": lambda: Answers(lambda m, y: Pair(y, {"c": (y + 1, None, "no tensor")})),
    "reflected": lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(3, 4, 3, 2, padding=1, padding_mode="circular"),
    "same, even": lambda: nn.Sequential(nn.Conv2d(3, 6, 4, padding="same"), nn.ReLU(), nn.Conv2d(
        6, 6, (2, 3), padding="same", dilation=2, groups=6), nn.Conv2d(6, 4, 1)),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4)
    ),
    "bare norms": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(),
                                        nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1)),
    "parametrised": lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), weight_norm(nn.Conv2d(4, 4, 1))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), backend="eager"),
    "complex": lambda: Answers(lambda m, y: torch.fft.rfft2(y)),
    "wider than the image": lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=20, dilation=20, groups=3),
                                                  nn.Conv2d(3, 2, 1, padding=3), nn.Conv2d(2, 2, 2, 5, groups=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    fast = optimize(model, torch.randn(SIZE), engines=("fused",), budget_s=60)
    assert fast.engine == "fused", str(fast.choices)
    for size in (SIZE, (1, 3, 12, 8), (1, 3, 12, 8), (3, *SIZE[1:]), (3, *SIZE[1:]), (0, *SIZE[1:])):
        x = torch.randn(size)
        if name == "complex" and not x.numel() and (refused := refusal(x)):
            with pytest.raises(RuntimeError, match=re.escape(refused)):
                fast(x)
            continue
        with torch.no_grad():
            want, seen = model(x), fast(x)
        assert difference(want, seen).ok(1e-4)
        assert type(seen) is type(want)


def refusal(x):
    """What PyTorch says to a spectrum of no images: built with MKL it refuses one (2.11 to 2.14), elsewhere not."""
    try:
        torch.fft.rfft2(x)
    except RuntimeError as error:
        return str(error)
    return ""
