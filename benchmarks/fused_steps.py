"""Profile a network on the fused engine: time every step of its plan in place.

    python -m benchmarks.fused_steps timm:mobilenetv3_small_100 [--size 224] [--rival] [--int8]

For each step, the table shows the shortest time of many calls. It also shows the time of the step's arithmetic at the
measured peak, the kilobytes that it reads and writes, and its share. `--rival` adds ONNX Runtime's own profile of the
same program. `--int8` shows the int8 program, its ranges from random images, and how many times faster it is than
float32, in turns. We count processor time of one thread. ONNX Runtime counts wall time, so the machine should be idle.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import leanconv as lc
from leanconv.deploy.int8 import Calibration
from leanconv.deploy.program import input_order, save_onnx
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.quantization.search import Search
from leanconv.engine.fused.roofline import work
from leanconv.engine.workbench import Workbench
from leanconv.measure.hardware.roofline import peaks
from leanconv.table import table


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--int8", action="store_true", help="the int8 program, and its speed against float32")
    parser.add_argument("--rival", action="store_true", help="add ONNX Runtime's profile")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(1, 3, arguments.size, arguments.size)
    bench = Workbench(lc.load(arguments.model).eval(), (x,), {}, 1)
    if arguments.int8:
        print(in_int8(bench, x, arguments.calls))
        return
    print(ours(bench, x, arguments.calls))
    if arguments.rival:
        print(f"\n{rival(bench, x, arguments.calls)}")


def ours(bench: Workbench, x: Tensor, calls: int) -> str:
    """Format the table of our steps."""
    return steps(*_in_float32(bench), x, calls)


def _in_float32(bench: Workbench) -> tuple[Graph, Program]:
    graph = fuse(to_graph(bench.program))
    runs, _ = autotune(graph, seconds=30, clock=bench.clock)
    return graph, Program(graph, runs)


def in_int8(bench: Workbench, x: Tensor, calls: int) -> str:
    """Format the table of the int8 program's steps, which blocks stay float32, and the ratio to float32."""
    graph = fuse(to_graph(bench.program))
    runs, report = autotune(graph, seconds=30, clock=bench.clock, splits=False)
    calibration = Calibration(bench.model, x, [torch.randn_like(x) for _ in range(4)], max_loss=1e6)
    found = Search(
        (graph, runs, report),
        calibration,
        lambda graph, runs: bench.from_flat(Program(graph, runs)),
        seconds=30,
        clock=bench.clock,
    ).best()
    narrow, (_, wide) = Program(*found[:2]), _in_float32(bench)
    for program in (narrow, wide):
        program(x)
    seen = side_by_side({"int8": lambda: narrow(x), "float32": lambda: wide(x)}, calls)
    text = steps(found[0], narrow, x, calls)
    return f"{text}\n{found[2]}\nint8 is {seen:.2f} times faster than float32 (median of the ratios of {calls} turns)"


def side_by_side(runs: dict[str, Any], turns: int) -> float:
    """The median ratio of the second's time to the first's, call by call in turns."""
    first, second = runs.values()
    return float(median(_seconds(second) / _seconds(first) for _ in range(turns)))


def steps(graph: Graph, program: Program, x: Tensor, calls: int) -> str:
    """Format the table of a program's steps."""
    program(x)
    whole = min(_seconds(lambda: program(x)) for _ in range(calls))
    seen = [program.timed(x) for _ in range(calls)]
    times = [(place, min(call[place] for call in seen)) for place in seen[0]]
    best, nodes = peaks("cpu", clock="cpu"), {program.places[node]: node for node in graph.nodes}
    rows, floors = [], 0.0
    for place, seconds in times:
        node = nodes[place]
        macs, numbers = work(node)
        floor_us = 1e3 * best.floor_ms(macs, 0)[0]
        floors += floor_us
        rows.append(
            [
                repr(node.op),
                "x".join(map(str, node.shape)),
                f"{seconds * 1e6:.1f}",
                f"{floor_us:.1f}",
                f"{floor_us / seconds / 1e6:.0%}",
                f"{4e-3 * numbers:.0f}",
                f"{seconds / whole:.1%}",
            ]
        )
    total = sum(seconds for _, seconds in times) * 1e6
    note = f"steps {total:.0f} µs, a call {whole * 1e6:.0f} µs, arithmetic alone {floors:.0f} µs; {best}"
    return table(["step", "result", "µs", "flops / peak", "", "kB", "share"], rows, note=note)


def _seconds(call: Any) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def rival(bench: Workbench, x: Tensor, calls: int) -> str:
    """Format ONNX Runtime's profile: the shortest time of each node in order, and the sums by kind."""
    import onnxruntime

    program = bench.program
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(program, path, inputs=["input0"] * len(input_order(program)), outputs=["output0"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, {"input0": x.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    least: dict[str, float] = {}
    about: dict[str, list[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name, args = event["name"].removesuffix("_kernel_time"), event["args"]
            least[name] = min(least.get(name, float("inf")), event["dur"])
            shape = next(iter(args["output_type_shape"][0].values())) if args.get("output_type_shape") else []
            about[name] = [args["op_name"], "x".join(map(str, shape))]
    kinds: dict[str, float] = defaultdict(float)
    for name, duration in least.items():
        kinds[about[name][0]] += duration
    rows = [[*about[name], f"{duration:.0f}"] for name, duration in least.items()]
    rows += [[f"all {kind}", "", f"{duration:.0f}"] for kind, duration in kinds.items()]
    return table(["node", "result", "µs"], rows, note=f"nodes {sum(least.values()):.0f} µs")


if __name__ == "__main__":
    main()
