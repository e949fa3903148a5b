"""The candidate "fused": the folded model as a graph of blocks, each in its fastest implementation here."""

from collections import Counter
from functools import partial

import torch

from leanconv.engine.candidate import Candidate, ModelForm
from leanconv.engine.eager import has_images
from leanconv.engine.fused.capture.dynamic_shapes import capture_dynamic, holds_sizes
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph, Node, Run, origin
from leanconv.engine.fused.ir.kinds.call import Call
from leanconv.engine.fused.ir.kinds.data_movement import Pad
from leanconv.engine.fused.lowering.autotune import NothingRuns, autotune
from leanconv.engine.fused.lowering.implementations import plain_implementation
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.passes.precision import lower_precision
from leanconv.engine.fused.quantization.search import Search, Tuned
from leanconv.engine.fused.stored import open_program, save_program
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.kernels import Target, backend


def _why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if bench.device.type != "cpu":
        return f"its kernels are for the CPU; the model is on {bench.device}"
    if dtype == torch.int8:
        if bench.dtype != torch.float32:
            return f"it quantizes models in float32, not {str(bench.dtype).removeprefix('torch.')}"
    elif (kind := dtype or bench.dtype) not in (torch.float32, torch.bfloat16):
        return f"its kernels take float32 and bfloat16, not {str(kind).removeprefix('torch.')}"
    return None if has_images(bench) else "the model has no 2-D convolution"


def _seconds(bench: Workbench) -> float:
    # U-Nets of 63 and 159 layers at 512 px, without compiled kernels in the cache: 12 and 16 s.
    return bench.capture_s + 2.0 + 0.06 * bench.layers + 5 * bench.call_s + backend().calibration_s()


def _int8_s(bench: Workbench) -> float:
    """What int8 takes beside `_seconds`: ranges, integer blocks and their references, the loss of some choices."""
    calls = 0 if bench.calibration is None else len(bench.calibration.tensors)
    return 5.0 + 0.1 * bench.layers + 4 * calls * bench.call_s


def _prepare(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    target = bench.target or Target()  # an unknown arithmetic is an error here, not the loss of every kernel
    half = (dtype or bench.dtype) == torch.bfloat16
    graph, runs, blocks = _in_integers(bench, target) if dtype == torch.int8 else _chosen(bench, half, target)
    program = Program(graph, runs, bench.dense)
    program.left_out = blocks.left_out  # one list
    args, kwargs = bench.call()
    with torch.no_grad():
        bench.from_flat(program.settle, widen=not half)(*args, **kwargs)
    form = bench.from_flat(program, widen=not half, alone=program.alone)
    blocks.note = "; ".join(filter(None, (blocks.int8, _lacks())))
    form.blocks = blocks  # type: ignore[attr-defined]
    if bench.plain:
        failed = {node: "aten" for node in blocks.names if repr(node) in program.left_out}
        form.store = partial(save_program, graph, blocks.names | failed, bench.dense[0])  # type: ignore[attr-defined]
    return form


def _in_integers(bench: Workbench, target: Target) -> Tuned:
    """The tuned graph with those blocks in int8 that are faster there and keep the limit of the loss."""
    calibration = bench.calibration
    if calibration is None:
        raise BadInput("int8 needs calibration data: optimize(..., dtype=torch.int8, data=batches)")
    wide = _chosen(bench, False, target, splits=False)

    def form(graph: Graph, runs: dict[Node, Run]) -> ModelForm:
        return bench.from_flat(Program(graph, runs, bench.dense))

    search = Search(wide, calibration, form, seconds=bench.measuring_s, clock=bench.clock, target=target)
    with bench.still():
        return search.best()


def _chosen(bench: Workbench, half: bool, target: Target, *, splits: bool = True) -> Tuned:
    """The tuned graph, with a function for each node. What no implementation runs is left as the program's calls."""
    plain: dict[str, str] = {}
    direct = target.arithmetic == "direct"
    graph = fuse(to_graph(bench.program), direct=direct)
    if holds_sizes(bench.program, graph):
        graph = _with_dynamic_shapes(bench, graph, direct)
    while True:
        if half:
            lower_precision(graph, torch.bfloat16)
        try:
            with torch.no_grad():
                return graph, *autotune(
                    graph,
                    seconds=bench.measuring_s,
                    clock=bench.clock,
                    target=target,
                    splits=splits,
                    still=bench.still,
                )
        except NothingRuns as failed:
            new = {origin(node): why for node, why in failed.nodes.items()}
            if new.keys() <= plain.keys():
                raise
            plain |= new
            program, sizes = graph.source
            graph = fuse(to_graph(program, sizes, plain), direct=direct)


def _lacks() -> str:
    """Why kernels are missing, or slower to compile and to run than they could be; "" if neither."""
    if reason := backend().why_not():
        return f"without kernels of its own: {reason}"
    return backend().drawback()


def _with_dynamic_shapes(bench: Workbench, fixed: Graph, direct: bool) -> Graph:
    """The graph with dynamic shapes, if its result and its blocks equal those of the graph with fixed shapes."""
    for spatial in (True, False):
        try:
            graph = fuse(to_graph(*capture_dynamic(bench, spatial=spatial)), direct=direct)
            runs = {node: plain_implementation(node) for node in graph.nodes if node.op.is_step}
            seen, _ = bench.verify(bench.from_flat(Program(graph, runs)))
        except Exception:  # try fewer dynamic axes; with none the engine is as good at the given sizes
            continue
        if _blocks(graph) == _blocks(fixed) and seen.passes:
            return graph
    return fixed


def _blocks(graph: Graph) -> Counter[str]:
    """The ops of a graph, without those that contain sizes (calls, pads) or depend on sizes alone (grids)."""
    grids: set[Node] = set()  # computed from sizes and constants alone
    for node in graph.nodes:
        if grids.issuperset(node.inputs):
            grids.add(node)
    kept = [node.op for node in graph.nodes if node not in grids and node.op.is_step]
    return Counter(repr(op) for op in kept if not isinstance(op, Call | Pad))


FUSED = Candidate(
    "fused",
    _why_not,
    _seconds,
    _prepare,
    any_shape=True,
    widens=True,
    lacks=_lacks,
    opens=open_program,
    int8_s=_int8_s,
)
