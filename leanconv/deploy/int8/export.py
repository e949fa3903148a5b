"""An exported file in int8: quantised from the verified float file, judged on the task metric, or refused."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from leanconv.deploy.axes import Dynamic
from leanconv.deploy.calls import as_numpy
from leanconv.deploy.failures import root_cause
from leanconv.deploy.int8 import MAX_LOSS, Calibration, nncf_openvino, qdq_onnx
from leanconv.deploy.int8.calibration import checked_limit
from leanconv.deploy.int8.costly import costly_layers, most
from leanconv.deploy.int8.weights import SAID, WEIGHT_BITS
from leanconv.deploy.openvino import openvino_core
from leanconv.deploy.program import capture_flat
from leanconv.deploy.runtimes import Runtime
from leanconv.errors import BadInput, ExportMismatch, LeanconvError
from leanconv.extras import needs
from leanconv.files import origin
from leanconv.version import __version__

SUFFIXES = (".onnx", ".xml")
Metrics = dict[str, tuple[float, float]]  # name -> (the model's, the file's), higher is better


@dataclass(frozen=True)
class Int8:
    """What an export in int8 needs: calibration data as of `optimize`, and the largest loss.

    Raises: BadInput for a `max_loss` that is no number above 0, before the float file is made.
    """

    data: Any
    max_loss: float = MAX_LOSS

    def __post_init__(self) -> None:
        checked_limit(self.max_loss)


@dataclass(frozen=True)
class Lost:
    """What a file lost in int8.

    Attributes:
        loss: the metric's drop, or without a `check` the relative squared error on the calibration data.
        limit: the largest that is allowed.
        how: the name of the metric with the largest drop, or what the error is.
        pictures: how many were calibrated on.
        by: the quantiser, with its version.
    """

    loss: float
    limit: float
    how: str
    pictures: int
    by: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "max_loss": self.limit,
            "of": self.how,
            "calibration_pictures": self.pictures,
            "by": self.by,
        }

    def __str__(self) -> str:
        return (
            f"int8 by {self.by}, calibrated on {self.pictures} pictures: loss {self.loss:.2g} ({self.how}), "
            f"allowed {self.limit:g}"
        )


def quantise(
    draft: Path,
    plain: nn.Module,
    call: Dynamic,
    int8: Int8,
    opened: Callable[[], Runtime],
    compared: Callable[[nn.Module], Metrics] | None,
    facts: str,
) -> tuple[Lost, Metrics]:
    """Replace a verified float file by one in int8. Returns its loss and its metrics.

    Args:
        opened: opens the file at `draft` in the call signature of the model. Raises ExportMismatch if it does not run.
        compared: name -> (the model's metric, the file's), higher is better; None: the error on the data decides.
        facts: what the file says of itself, as JSON; what it lost is added.
    Raises: ExportMismatch, with the layers that cost most, for a loss above the limit; BadInput for unusable data.
    """
    args, kwargs = call.frame.join(call.tensors)
    calibration = Calibration(plain, kwargs or args, int8.data, max_loss=int8.max_loss, axes=call.axes)
    best: tuple[Lost, Metrics] | None = None
    unusable: Exception | None = None
    try:
        for by in _attempts(draft, calibration):
            try:
                runtime = opened()
            except ExportMismatch as error:
                unusable = unusable or error
                continue
            metrics = compared(runtime) if compared is not None else {}
            how, loss = _worst(metrics) if metrics else (calibration.how, calibration.loss(runtime))
            del runtime  # the file must not stay mapped while it is replaced
            lost = Lost(loss, calibration.limit, how, calibration.pictures, by)
            if best is None or loss < best[0].loss:
                best = lost, metrics
            if loss <= calibration.limit:
                _say(draft, {**(json.loads(facts) if facts else {"leanconv": __version__}), "int8": lost.to_dict()})
                return best
    except (LeanconvError, OSError):
        raise
    except Exception as error:  # whatever a quantiser raises
        unusable = BadInput(f"the model cannot become int8: {root_cause(error)}")
        unusable.__cause__ = error
    if best is None:
        assert unusable is not None
        raise unusable
    raise ExportMismatch(_refusal(draft, plain, calibration, *best))


def _worst(metrics: Metrics) -> tuple[str, float]:
    """The name of the metric with the largest drop, and the drop: infinite where one of the two is not finite."""
    drops = {
        name: ours - file if math.isfinite(ours) and math.isfinite(file) else math.inf
        for name, (ours, file) in metrics.items()
    }
    return max(drops.items(), key=lambda each: each[1])


def _refusal(draft: Path, plain: nn.Module, calibration: Calibration, lost: Lost, metrics: Metrics) -> str:
    what = f"{draft.name}: int8 has a {lost.how} of {lost.loss:.2g}"
    if metrics:
        ours, file = metrics[lost.how]
        what = f"{draft.name}: int8 loses {lost.loss:.2g} of {lost.how}, which is {file:.4f} instead of {ours:.4f}"
    try:
        args, kwargs = calibration.calls[0]
        first = [t.shape for t in calibration.tensors[0]]
        alike = [each for each in calibration.tensors if [t.shape for t in each] == first]
        layers = most(costly_layers(capture_flat(plain, args, kwargs), alike))
    except Exception:  # a model that cannot be captured at one size is refused all the same
        layers = ""
    return (
        f"{what} (allowed {lost.limit:g}){f'; {layers}' if layers else ''}; nothing was written: allow more with "
        "max_loss, calibrate on more pictures, or export without int8"
    )


def _attempts(draft: Path, calibration: Calibration) -> Iterator[str]:
    """Put one int8 file after the other at `draft`, and yield each quantiser's name."""
    if draft.suffix == ".onnx":
        yield from _onnx(draft, calibration)
    else:
        yield from _openvino(draft, calibration)


def _onnx(draft: Path, calibration: Calibration) -> Iterator[str]:
    with needs("onnxruntime", "export"):
        import onnxruntime

    made, exact = draft.with_name(f"int8-{draft.name}"), draft.with_name(f"exact-{draft.name}")
    session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    del session
    os.replace(draft, exact)
    try:
        for bits in WEIGHT_BITS:
            qdq_onnx.to_int8(exact, made, _feeds(calibration, names), weight_bits=bits)
            os.replace(made, draft)
            yield f"onnxruntime {onnxruntime.__version__}, QDQ, {SAID[bits]}"
    finally:
        exact.unlink()
        draft.with_name(f"{draft.name}.data").unlink(missing_ok=True)  # the float file's weights


def _openvino(draft: Path, calibration: Calibration) -> Iterator[str]:
    with needs("openvino", "export"):
        import openvino

    model = openvino_core().read_model(str(draft))
    feeds = _feeds(calibration, [port.any_name for port in model.inputs])
    made = draft.with_name(f"int8-{draft.name}")
    for bits, preset in itertools.product(WEIGHT_BITS, nncf_openvino.PRESETS):
        quantised = nncf_openvino.to_int8(model, feeds, preset, weight_bits=bits)
        openvino.save_model(quantised, str(made), compress_to_fp16=False)
        # The float weights stay mapped for the next attempt: a file that is replaced stays until nobody reads it.
        for suffix in (".bin", ".xml"):
            os.replace(made.with_suffix(suffix), draft.with_suffix(suffix))
        yield f"nncf {version('nncf')}, preset {preset}, {SAID[bits]}"


def _feeds(calibration: Calibration, names: list[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, map(as_numpy, tensors), strict=True)) for tensors in calibration.tensors]


def _say(draft: Path, facts: Mapping[str, Any]) -> None:
    """Write what the file is into its metadata."""
    text = json.dumps(facts)
    if draft.suffix == ".onnx":
        with needs("onnx", "export"):
            import onnx
        model = onnx.load(str(draft))
        onnx.helper.set_model_props(model, {"origin": origin(), "leanconv": text})
        onnx.save(model, str(draft))
        return
    with needs("openvino", "export"):
        import openvino
    model, made = openvino_core().read_model(str(draft)), draft.with_name(f"int8-{draft.name}")
    model.set_rt_info(origin(), ["origin"])
    model.set_rt_info(text, ["leanconv"])
    openvino.save_model(model, str(made), compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        os.replace(made.with_suffix(suffix), draft.with_suffix(suffix))
