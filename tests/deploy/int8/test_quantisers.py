"""NNCF's and ONNX Runtime's int8 models: off by no more than the steps of 8 bits allow, quiet, and without traces."""

import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.deploy.int8 import nncf_openvino, qdq_onnx
from leanconv.deploy.int8.still import load_nncf, one_core, still
from leanconv.deploy.int8.weights import WEIGHT_BITS
from leanconv.deploy.openvino import OpenVino, openvino_core
from leanconv.deploy.program import capture_flat, input_order, save_onnx, to_openvino
from leanconv.deploy.runtimes import OnnxRuntime
from leanconv.engine.int8 import has_vnni
from leanconv.kernels.cpu.tuning.cpu import cpuinfo

needs_nncf = pytest.mark.skipif(not all(map(pytest.importorskip, ("openvino", "nncf"))), reason="needs openvino, nncf")


def layer():
    """One convolution whose answers have the sizes of its inputs."""
    torch.manual_seed(0)
    model = nn.Conv2d(8, 6, 3, padding=1).eval()
    return model, torch.rand(6, 8, 20, 20) * 2 - 0.5


def bound(model, data):
    """The largest error at each pixel by rounding inputs and answers to 255 steps and weights to 63.

    NNCF gives the first layer 7 bits. Its bias correction adds at most the mean of that error.
    """
    with torch.no_grad():
        weight, y = model.weight, model(data)
        step_x, step_y = (float(t.max() - t.min()) / 250 for t in (data, y))
        step_w = weight.abs().amax((1, 2, 3)) / 63  # O
        from_inputs = step_x / 2 * weight.abs().sum((1, 2, 3))  # O
        ones = torch.ones_like(weight[:1])
        from_weights = torch.nn.functional.conv2d(data.abs() + step_x, ones, padding=1) * step_w[:, None, None] / 2
        return 2 * (from_inputs[:, None, None] + from_weights) + step_y  # N O H W


def judged(model, data, run):
    with torch.no_grad():
        error = (run(data[:1])[0] - model(data[:1])).abs()
    assert bool((error <= bound(model, data)[:1]).all())
    assert float(error.max()) > 1e-4  # it does compute in 8 bits


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("bits", WEIGHT_BITS)
@pytest.mark.parametrize("preset", nncf_openvino.PRESETS)
def test_nncf_rounds_to_8_bits(preset, bits, capfd):
    model, data = layer()
    program = capture_flat(model, (data[:1],), {})
    exact, name = to_openvino(program), input_order(program)[0]
    feeds = [{name: x[None].numpy()} for x in data]
    quantised = nncf_openvino.to_int8(exact, feeds, preset, weight_bits=bits)
    kinds = [op.get_type_name() for op in quantised.get_ops()]
    assert "FakeQuantize" in kinds
    assert "FakeQuantize" not in [op.get_type_name() for op in exact.get_ops()]  # the given one stays as it is
    judged(model, data, OpenVino(quantised, shapes=[(1, 8, 20, 20)]))
    assert capfd.readouterr() == ("", "")


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_nncf_gives_weights_their_bits(bits):
    """Of the second layer: with 8, NNCF gives those of the first one 7."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = torch.rand(1, 3, 16, 16)
    program = capture_flat(model, (x,), {})
    quantised = nncf_openvino.to_int8(to_openvino(program), [{input_order(program)[0]: x.numpy()}], weight_bits=bits)
    kept = [op.data.astype(int) for op in quantised.get_ops() if op.get_type_name() == "Constant" and op.data.ndim == 4]
    (second,) = [each for each in kept if each.shape == (8, 8, 3, 3)]
    assert abs(second).max() in (2 ** (bits - 1) - 1, 2 ** (bits - 1))


@pytest.mark.slow
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_qdq_rounds_to_8_bits(bits, tmp_path, capfd):
    onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    model, data = layer()
    root, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    save_onnx(capture_flat(model, (data[:1],), {}), tmp_path / "a.onnx", inputs=["x"], outputs=["y"])
    qdq_onnx.to_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", [{"x": x[None].numpy()} for x in data], weight_bits=bits)
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} == set(kinds)
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "b.onnx").graph.initializer]
    (packed,) = [each for each in weights if each.shape == (6, 8, 3, 3)]
    assert packed.dtype == np.int8
    largest = np.abs(packed.astype(int)).max((1, 2, 3))
    assert largest.max() <= 2 ** (bits - 1)
    assert largest.min() >= 2 ** (bits - 1) - 1
    if bits < 8 or has_vnni(cpuinfo()[1]):
        judged(model, data, OnnxRuntime(tmp_path / "b.onnx"))
    assert capfd.readouterr() == ("", "")
    assert list(logging.getLogger().handlers) == root
    assert logging.root.manager.disable == disabled
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


@needs_nncf
def test_nncf_gets_the_one_core_and_openvino_keeps_its_own():
    import openvino

    own = openvino.Core
    with one_core():
        assert openvino.Core() is openvino_core()
    assert openvino.Core is own
    with pytest.raises(ZeroDivisionError), one_core():
        raise ZeroDivisionError
    assert openvino.Core is own


@needs_nncf
def test_nncf_is_loaded_without_its_telemetry():
    before = sys.modules.get("openvino_telemetry")
    assert load_nncf() is load_nncf()
    assert sys.modules.get("openvino_telemetry") is before
    wrapper = sys.modules["nncf.telemetry.wrapper"]
    assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)


def test_a_library_that_logs_to_the_root_sets_nothing_up():
    root, level = logging.getLogger(), logging.root.manager.disable
    before = list(root.handlers)
    with still():
        logging.warning("hidden")
    assert (list(root.handlers), logging.root.manager.disable) == (before, level)
