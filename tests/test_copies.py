"""Copies of models, as a training leaves them: where every command that copies one works, or says what cannot be."""

import contextlib
import threading

import pytest
import torch
from torch import nn

import leanconv
from leanconv.convert import fold_, plan
from leanconv.copies import copied
from leanconv.errors import BadInput

pytestmark = [  # the old functions, and what PyTorch's own layers say about them
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning"),
]


class Keeps(nn.Module):
    """A forward that keeps what it computed: alone, in a list, in a dict, in a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("loss", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.last = self.conv(x)
        self.maps, self.named = [self.last, self.last * 2], {"a": (self.last.sum(),)}
        self.loss = self.last.mean()
        return self.last


def with_(change, kind=nn.Conv2d):
    def make():
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
        for module in list(model):
            if isinstance(module, kind):
                change(module)
        return model

    return make


def tied():
    conv = nn.utils.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    return nn.Sequential(conv, nn.ReLU(), conv)


AFTER_A_STEP = {
    "weight_norm": with_(nn.utils.weight_norm),
    "spectral_norm": with_(nn.utils.spectral_norm, (nn.Conv2d, nn.Linear)),
    "both": with_(lambda m: nn.utils.spectral_norm(nn.utils.weight_norm(m, "weight"), "weight_v")),
    "parametrizations": with_(nn.utils.parametrizations.weight_norm),
    "kept activations": Keeps,
    "one module twice": tied,
}


def trained(name):
    """After a step, and after a call under autograd: the weights that were computed for it are still there."""
    torch.manual_seed(0)
    model = AFTER_A_STEP[name]()
    x = torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(x).square().sum().backward()
    optimizer.step()
    model.eval()(x)
    return model, x


@pytest.mark.parametrize("name", AFTER_A_STEP)
def test_a_copy_is_the_model_and_shares_nothing(name):
    model, x = trained(name)
    made = copied(model)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(made(x), want, rtol=0, atol=0)
        for parameter in made.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    assert [k for k, _ in made.named_parameters()] == [k for k, _ in model.named_parameters()]
    made.train()(x).sum().backward()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    "name", [name for name in AFTER_A_STEP if name not in ("parametrizations", "kept activations")]
)
def test_exported_after_a_step(name, suffix, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    pytest.importorskip("onnxscript", reason="needs the export extra")
    model, x = trained(name)
    made = leanconv.export(model, x, tmp_path / f"m{suffix}")
    with torch.no_grad():
        torch.testing.assert_close(leanconv.deploy.open_file(made.path)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AFTER_A_STEP)
def test_every_room_takes_it_after_a_step(name):
    model, x = trained(name)
    leanconv.profile(model, x)
    leanconv.compare({"a": model}, x)
    model(x)
    plan(model, x, to="splconv")
    model(x)
    fast = leanconv.optimize(model, x, engines=("folded",), budget_s=5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    model(x)
    fold_(model, x)


class Tracker:
    def __init__(self):
        self.lock = threading.Lock()

    def hook(self, module, inputs, output):
        return None


def put(model, value):
    model[1].cache = value


HOLD = {
    "a lock": (lambda m: put(m, threading.Lock()), r"layer '1', its attribute 'cache' \(lock\)"),
    "a generator": (lambda m: put(m, (i for i in range(3))), r"layer '1', its attribute 'cache' \(generator\)"),
    "a file": (lambda m: put(m, {"log": open(__file__)}), r"layer '1', its attribute 'cache' \(dict\)"),  # noqa: SIM115
    "a hook's owner": (lambda m: m[2].register_forward_hook(Tracker().hook), r"layer '2', a hook \(_forward_hooks\)"),
}


@pytest.mark.parametrize("what", HOLD)
def test_what_has_no_copy_is_named(what, tmp_path):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(1, 3, 5, 5)
    hold, says = HOLD[what]
    hold(model)
    for call in (
        lambda: leanconv.export(model, x, tmp_path / "m.pt2"),
        lambda: fold_(model, x),
        lambda: leanconv.profile(model, x),
    ):
        with pytest.raises(BadInput, match=f"^the model cannot be copied: of {says}: \\w+Error: ") as told:
            call()
        assert "\n" not in str(told.value)
    assert says.split("'")[1] in str(leanconv.optimize(model, x, engines=("folded",), budget_s=5).choices)
    with contextlib.suppress(TypeError, AttributeError):
        model[1].cache["log"].close()
