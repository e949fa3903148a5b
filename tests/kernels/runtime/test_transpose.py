"""Copies between planes and pixels: every bit as PyTorch's copy has it."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu.runtime import abi, transpose
from leanconv.kernels.cpu.runtime.transpose import ensure_nhwc, to_channels_last, to_contiguous

LAST = torch.channels_last
KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.int32]
pytestmark = pytest.mark.usefixtures("halide")


def map_of(n, c, h, w, dtype=torch.float32):
    """All bits at random, NaN among them; the samples and channels of a larger tensor."""
    bits = torch.randint(-(2**31), 2**31, (n + 1, c + 2, h, w), dtype=torch.int64).to(torch.int32)
    wide = bits if dtype == torch.int32 else bits.view(dtype)[..., :w].contiguous()
    return wide[:n, 1 : c + 1]


def same(x, y):
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    return torch.equal(x.contiguous().view(bits), y.contiguous().view(bits))


@contextmanager
def on(threads):
    """So many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def counted(monkeypatch):
    """Whether each map asked about goes through the runtime."""
    seen, real = [], transpose.copy_of

    def copy_of(x, **rest):
        made = real(x, **rest)
        seen.append(made is not None)
        return made

    monkeypatch.setattr(transpose, "copy_of", copy_of)
    return seen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(KINDS),
    st.sampled_from([1, 2]),
)
def test_every_number_is_where_pytorch_puts_it(n, c, h, w, dtype, threads):
    x = map_of(n, c, h, w, dtype)
    with on(threads):
        pixels = to_channels_last(x)
        planes = to_contiguous(pixels)
        inner = to_contiguous(pixels[:, c // 3 :])  # channels of a wider map
    expected = x.contiguous(memory_format=LAST)
    assert pixels.stride() == expected.stride() or 1 in (n, c, h, w)
    assert pixels.is_contiguous(memory_format=LAST)
    assert planes.is_contiguous()
    assert inner.is_contiguous()
    assert same(pixels, x)
    assert same(planes, x)
    assert same(inner, x[:, c // 3 :])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(1, 16, 32, 32), (2, 65, 13, 17), (1, 1040, 4, 4), (1, 17, 128, 128)])
def test_large_maps_go_through_the_runtime(counted, shape, dtype):
    x = map_of(*shape, dtype)
    assert same(to_contiguous(to_channels_last(x)), x)
    assert counted == [True, True]


@pytest.mark.parametrize("shape", [(0, 64, 32, 32), (1, 64, 0, 32), (1, 3, 224, 224), (1, 4096, 2, 2), (1, 16, 4, 4)])
def test_others_are_left_to_pytorch(counted, shape):
    x = map_of(*shape)
    assert same(to_contiguous(to_channels_last(x)), x)
    assert not any(counted)


def test_what_lies_right_is_not_copied():
    pixels = map_of(1, 32, 24, 24).contiguous(memory_format=LAST)
    assert to_channels_last(pixels) is pixels
    assert ensure_nhwc(pixels[:, 3:20]).data_ptr() == pixels[:, 3:20].data_ptr()
    planes = pixels.contiguous()
    assert to_contiguous(planes).data_ptr() == planes.data_ptr()
    assert to_contiguous(torch.ones(3, 2).t()).is_contiguous()


def test_maps_that_are_more_than_their_numbers_in_memory():
    """Rows apart, a repeated channel, eight bytes, a conjugate's sign, gradients: PyTorch's copy."""
    x = torch.randn(1, 32, 24, 50)
    for odd in (
        x[..., ::2],
        x[:, :, ::2],
        x.transpose(2, 3),
        x[:, :1].expand(1, 32, 24, 50),
        x.double(),
        torch._neg_view(x),
    ):
        assert torch.equal(to_channels_last(odd), odd)
        assert torch.equal(to_contiguous(to_channels_last(odd)), odd)
    leaf = x.clone().requires_grad_()
    to_contiguous(to_channels_last(leaf)).sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(x))


def test_without_kernels_pytorch_copies(monkeypatch):
    monkeypatch.setattr(abi, "library", lambda: None)
    x = map_of(1, 32, 24, 24)
    assert same(to_contiguous(to_channels_last(x)), x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 18),
    st.integers(1, 18),
    st.sampled_from(KINDS),
    st.sampled_from([1, 2]),
)
def test_small_copies_of_a_plan_fill_their_map_and_no_more(n, c, h, w, dtype, threads):
    x = map_of(n, c, h, w, dtype)
    for planes, source in ((False, x), (True, x.contiguous(memory_format=LAST))):
        copy = transpose.copy_of(source, planes=planes)
        if copy is None:
            assert x.numel() >= transpose._LEAST
            continue
        room = torch.full((x.numel() + 64,), 7, dtype=dtype)
        made = torch.contiguous_format if planes else LAST
        strides = torch.empty_like(x, memory_format=made, device="meta").stride()
        with on(threads):
            copy(source, room[32:])
        assert same(room[32:].as_strided(x.shape, strides, room.storage_offset() + 32), x)
        assert (room[:32] == 7).all()
        assert (room[32 + x.numel() :] == 7).all()
