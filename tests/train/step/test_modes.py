"""Modes: their names, what they change in a model, and that all of it can be taken back."""

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput, UnknownName
from leanconv.kernels.training import available
from leanconv.train.step.modes import CHANGES, WORDS, Change, Forward, Mode, uncompiled


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))


def test_names():
    assert Mode().name == "eager"
    assert Mode.parse("eager") == Mode()
    assert Mode.parse("compile channels_last").name == "channels_last compile"
    assert all(Mode.parse(word).name == word for word in WORDS)
    assert Mode.parse("compile").plus("bfloat16").name == "bfloat16 compile"
    with pytest.raises(UnknownName, match=r"did you mean 'compile'.*known: eager, channels_last"):
        Mode.parse("compiled")
    with pytest.raises(BadInput, match="no name"):
        Mode.parse(" ")


def test_combinations_are_those_of_use():
    conv = nn.Conv2d(3, 4, 3)
    names = [mode.name for mode in uncompiled(conv, bfloat16=True)]
    assert names == ["eager", "channels_last", "bfloat16", "channels_last bfloat16"]
    conv.to(memory_format=torch.channels_last)
    assert [mode.name for mode in uncompiled(conv, bfloat16=False)] == ["eager"]
    assert [mode.name for mode in uncompiled(nn.Linear(2, 2), bfloat16=True)] == ["eager", "bfloat16"]


@pytest.mark.skipif(available() is not None, reason=available() or "kernels")
def test_kernels_are_a_mode_where_a_layer_has_one():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 3))
    names = [mode.name for mode in uncompiled(layers, bfloat16=False)]
    assert names == ["eager", "channels_last", "kernels", "channels_last kernels"]
    assert "kernels" not in [mode.name for mode in uncompiled(nn.Sequential(nn.Conv2d(3, 4, 3)), bfloat16=False)]
    elsewhere = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)).to("meta")
    assert "kernels" not in [mode.name for mode in uncompiled(elsewhere, bfloat16=False)]
    x = torch.randn(2, 4, 9, 7)
    expected = layers(x)
    forward = Forward(layers, Mode.parse("kernels"))
    with forward.changes():
        assert "_conv_forward" in vars(layers[0])  # the layer calls the kernel
        torch.testing.assert_close(forward(x), expected, rtol=1e-5, atol=1e-6)
    assert "_conv_forward" not in vars(layers[0])


def test_a_mode_of_another_room_takes_one_line(monkeypatch):
    removed = []

    class Doubled:
        def __init__(self, model):
            self.model = model
            self.hook = model.register_forward_hook(lambda *call: 2 * call[2])

        def remove(self):
            self.hook.remove()
            removed.append(self.model)

    monkeypatch.setitem(CHANGES, "channels_last", Change(Doubled, lambda model: ""))
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    forward = Forward(conv, Mode(("channels_last",)))
    with forward.changes():
        torch.testing.assert_close(forward(x), 2 * nn.functional.conv2d(x, conv.weight, conv.bias))
    assert removed == [conv]
    torch.testing.assert_close(forward(x), conv(x))


def test_channels_last_is_taken_back_with_the_numbers_of_now():
    conv = nn.Conv2d(8, 8, 3, bias=False)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
    before, parameter, place = conv.weight.detach().clone(), conv.weight, conv.weight.data_ptr()
    forward = Forward(conv, Mode(("channels_last",)))
    (handle,) = forward.change_()
    assert conv.weight is parameter
    assert torch.equal(conv.weight, before)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    y = forward(torch.randn(2, 8, 6, 6))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    optimizer.step()
    after = conv.weight.detach().clone()
    assert not torch.equal(after, before)
    handle.remove()
    assert conv.weight.data_ptr() == place
    assert conv.weight.is_contiguous()
    assert torch.equal(conv.weight, after)


def test_bfloat16_gives_float32_results_and_gradients():
    class Pair(nn.Conv2d):
        def forward(self, x, *, scale):
            return {"map": super().forward(x) * scale, "count": torch.tensor(3)}

    conv, x = Pair(3, 4, 3), torch.randn(2, 3, 7, 7)
    found = Forward(conv, Mode(("bfloat16",)))(x, scale=2.0)
    exact = conv(x, scale=2.0)["map"]
    assert (found["map"].dtype, found["count"].dtype) == (torch.float32, torch.int64)
    assert 0 < (found["map"] - exact).abs().max() < 0.02 * exact.abs().max()
    found["map"].sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_compiled_mode_runs_other_sizes_uncompiled(monkeypatch):
    """The last batch of an epoch is smaller: a program of its own would cost a minute."""
    ran = []

    def compiled(model, **options):
        assert options["dynamic"] is False
        return lambda x: ran.append(tuple(x.shape)) or model(x)

    monkeypatch.setattr(torch, "compile", compiled)
    conv = nn.Conv2d(3, 4, 3)
    forward = Forward(conv, Mode(("compile",)))
    for batch in (4, 3, 4):
        assert forward(torch.randn(batch, 3, 5, 5)).shape[0] == batch
    forward(torch.randn(4, 3, 5, 5, dtype=torch.float32)[:, :, :4])
    assert ran == [(4, 3, 5, 5)] * 2
