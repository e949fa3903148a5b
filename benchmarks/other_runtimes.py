"""ncnn and ExecuTorch's XNNPACK as engines of the benchmarks, beside those of `optimize`; both are optional.

    pip install ncnn pnnx           # ncnn, and its converter from PyTorch
    pip install executorch          # with XNNPACK

A benchmark without them says so and how to get them. Each runs at its best: ncnn in float32 with all its optimisations,
XNNPACK with every operator that its partitioner takes. Both run in this process, in turns with the others.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from leanconv.deploy.program import quiet
from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.workbench import Workbench
from leanconv.extras import installed


def _absent(*libraries: str) -> str | None:
    gone = [name for name in libraries if not installed(name)]
    return f"{' and '.join(gone)} not installed: pip install {' '.join(gone)}" if gone else None


def _not_float32(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if bench.device.type != "cpu":
        return f"used on the CPU only; the model is on {bench.device}"
    return None if (dtype or bench.dtype) == torch.float32 else "measured here in float32 only"


def _seconds(bench: Workbench) -> float:
    return bench.capture_s + 5.0 + 0.05 * bench.layers + 3 * bench.call_s


def _ncnn_why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if reason := _absent("ncnn", "pnnx") or _not_float32(bench, dtype):
        return reason
    plain = bench.single and isinstance(bench.answer, Tensor) and bench.tensors[0].shape[0] == 1
    return None if plain else "it takes one map of one sample, and gives one"


def _ncnn(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    import ncnn
    import numpy as np
    import pnnx

    (x,), model = bench.tensors, bench.copy_of_folded(None)
    net = ncnn.Net()
    net.opt.num_threads = bench.threads
    # float32 throughout: what the others compute in.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.pt"
        with quiet():
            torch.jit.trace(model, x, check_trace=False).save(str(traced))
        shape = f"[{','.join(map(str, x.shape))}]f32"
        words = [pnnx.EXEC_PATH, "model.pt", f"inputshape={shape}", "fp16=0"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
        found = [traced.with_suffix(f".ncnn.{kind}") for kind in ("param", "bin")]
        if net.load_param(str(found[0])) or net.load_model(str(found[1])):
            raise RuntimeError("ncnn cannot load what pnnx wrote")
    size = bench.answer.shape

    def run(x: Tensor) -> list[Tensor]:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(x[0].contiguous().numpy()))
        failed, y = extractor.extract("out0")
        if failed:
            raise RuntimeError(f"ncnn failed: {failed}")
        return [torch.from_numpy(np.array(y)).view(size)]

    return bench.from_flat(run)


def _xnnpack_why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    return _absent("executorch") or _not_float32(bench, dtype)


def _xnnpack(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    with quiet(), _silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.extension.pybindings import portable_lib

        lowered = to_edge_transform_and_lower(bench.program, partitioner=[XnnpackPartitioner()])
        buffer = lowered.to_executorch().buffer
        portable_lib._unsafe_reset_threadpool(bench.threads)
        loaded = portable_lib._load_for_executorch_from_buffer(buffer)
    if (threads := portable_lib._threadpool_get_thread_count()) != bench.threads:
        raise RuntimeError(f"XNNPACK took {threads} threads, not {bench.threads}")

    def run(*tensors: Tensor, _kept: bytes = buffer) -> list[Tensor]:  # the loaded program reads from it
        return list(loaded.forward(tensors))

    return bench.from_flat(run)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what C++ writes on stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


NCNN = Candidate("ncnn", _ncnn_why_not, _seconds, _ncnn)
XNNPACK = Candidate("xnnpack", _xnnpack_why_not, _seconds, _xnnpack)
OTHERS = {each.name: each for each in (NCNN, XNNPACK)}
# The package that decides the speed of each peer.
PACKAGES = {
    "ncnn": "ncnn", "xnnpack": "executorch", "openvino": "openvino", "onnxruntime": "onnxruntime", "compile": "torch",
}  # fmt: skip


def versions(engines: Sequence[str]) -> dict[str, str]:
    """The installed version of every peer's package; engines that are not installed are left out."""
    found = {}
    for engine in engines:
        try:
            found[engine] = version(PACKAGES[engine])
        except (KeyError, PackageNotFoundError):
            continue
    return found
