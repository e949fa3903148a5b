"""Count the share of convolutions that a swap reaches: every architecture of timm, every decoder of smp.

    python benchmarks/zoo_share.py            # about 25 minutes on one core; continues after an interruption

First, `plan` runs on every architecture on the meta device, with shapes only, at the model's own input size. The
denominator is all exact dense k > 1 `nn.Conv2d`, found by walking the model, not by asking the plan. The share counts
what is swapped with `where="*"`, and lists the reasons for the rest. The default share keeps each network's first
convolution, which is the only one in most transformers.

Then each operator is really swapped in on the CPU. The models are the smallest architecture of every timm module and
every smp decoder. The test runs forward, backward, fold_ and undo_. Nothing may crash, and undo_ must restore the state
dict. Weights are random; nothing is downloaded.
"""

import argparse
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leanconv as lc
from leanconv.convert.reasons import FIRST, category
from leanconv.files import write_json
from leanconv.table import table

OPERATORS = {"depthwise_separable": 0.95, "hetconv(part=4)": 0.80, "splconv": 0.80}  # with the target share
LARGEST = 100e6  # most parameters of a model that is really swapped
SECONDS = 120  # processor time per model
CHECK_SIDE = 128  # input side of a real swap if the model takes it, else its own size

Factory = Callable[[], tuple[nn.Module, tuple[int, int, int]]]


def timm_models() -> Iterator[tuple[str, str, Factory]]:
    """Yield (module, name, factory of the model and its input size)."""
    import timm

    def factory(name: str) -> Factory:
        def build() -> tuple[nn.Module, tuple[int, int, int]]:
            model = timm.create_model(name, pretrained=False)
            return model, tuple(model.default_cfg["input_size"])

        return build

    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            yield f"timm.{module}", f"timm:{name}", factory(name)


def smp_models() -> Iterator[tuple[str, str, Factory]]:
    """Yield every decoder of smp on two encoders."""
    import segmentation_models_pytorch as smp

    def factory(arch: str, encoder: str) -> Factory:
        side = 224 if arch == "dpt" else 256  # its encoder takes one size only
        return lambda: (smp.create_model(arch, encoder_name=encoder, encoder_weights=None), (3, side, side))

    for arch in sorted(smp.MODEL_ARCHITECTURES_MAPPING):
        for encoder in ("tu-vit_small_patch16_224",) if arch == "dpt" else ("resnet18", "mobilenet_v2"):
            yield f"smp.{arch}", f"smp:{arch}?encoder_name={encoder}", factory(arch, encoder)


def is_dense(module: nn.Module) -> bool:
    """Whether the share counts the module: exactly `nn.Conv2d`, one group, more than one tap."""
    return type(module) is nn.Conv2d and module.groups == 1 and max(module.kernel_size) > 1


def share(factory: Factory) -> dict[str, Any]:
    """Count one architecture: parameters, dense convolutions, and per operator the swaps and the other reasons."""
    with torch.device("meta"):
        model, size = factory()
    dense = {name for name, module in model.named_modules() if is_dense(module)}
    x = torch.empty(1, *size, device="meta")
    default = lc.plan(model, x, to=next(iter(OPERATORS)))
    first = {swap.name for swap in default.kept if swap.reason == FIRST}
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters()), "dense": len(dense), "operators": {}}
    for operator in OPERATORS:
        plan = lc.plan(model, x, to=operator, where="*")
        swapped = {s.name for s in plan.swapped}
        missing = dense - {s.name for s in plan}
        if missing or not swapped <= dense:
            raise RuntimeError(f"{operator}: not in the plan: {missing}; swapped and not dense: {swapped - dense}")
        kept = Counter(_reason(s.reason) for s in plan.kept if s.name in dense)
        row["operators"][operator] = {
            "swapped": len(swapped), "default": len(swapped - first), "kept": dict(kept.most_common()),
        }  # fmt: skip
    return row


def _reason(reason: str) -> str:
    """Return the category, and for "unsupported" the unsuitable option without its numbers."""
    words = reason.split(": ", 2)[-1].split("=")[0].split(" ")[-1]
    return f"{category(reason)}: {words}" if category(reason) == "unsupported" else category(reason)


def swap_really(factory: Factory) -> dict[str, str]:
    """Swap every operator in, use the model, undo the swap. Returns operator -> "ok" or the failure."""
    model, size = factory()
    x, outcome = _input(model.eval(), size), {}
    for operator in OPERATORS:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        plan = lc.plan(model, x, to=operator)
        applied = lc.apply_(model, plan)
        _sum(model(x)).backward()
        model.zero_grad()
        applied.undo_()
        after = model.state_dict()
        same = list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
        outcome[operator] = "ok" if same else "undo_ did not give the state dict back"
    lc.apply_(model, plan)
    report = lc.fold_(model, x)
    moved = report.certificate or 0.0
    outcome["fold_"] = f"{len(report.done)} done, {len(report.refused)} refused, outputs move by {moved:.1e}"
    return outcome


def _input(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    small = (size[0], min(size[1], CHECK_SIDE), min(size[2], CHECK_SIDE))
    for sizes in (small, size):
        x = torch.randn(1, *sizes)
        try:
            with torch.no_grad():
                model(x)
            return x
        except Exception:  # the model has a fixed size: try its own size
            continue
    return x


def _sum(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.float().sum()
    return sum((_sum(item) for item in (value.values() if isinstance(value, dict) else value)), torch.zeros(()))


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after this many seconds of processor time, which does not depend on other processes."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def cached(cache: Path, key: str, work: Callable[[], Any]) -> Any:
    """Return the stored result of `key`, or run `work` and store its result. A failure is stored as {"error": ...}."""
    if cache.is_file():
        for line in cache.read_text().splitlines():
            entry = json.loads(line)
            if entry["key"] == key:
                return entry["value"]
    started = time.monotonic()
    try:
        with limit(SECONDS):
            value = work()
    except Exception as error:  # this benchmark lists failures
        value = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    print(f"{key}: {json.dumps(value)[:150]} ({time.monotonic() - started:.1f} s)", flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a") as file:
        file.write(json.dumps({"key": key, "value": value}) + "\n")
    return value


def collect(cache: Path, only: str, finished: bool) -> dict[str, Any]:
    """Collect the content of the report. With `finished`, use the cache only and run nothing."""
    models = [entry for entry in (*smp_models(), *timm_models()) if only in entry[1]]
    done = {json.loads(line)["key"] for line in cache.read_text().splitlines()} if finished else set()
    rows, errors, smallest = {}, {}, {}
    for module, name, factory in models:
        if finished and f"share {name}" not in done:
            continue
        row = cached(cache, f"share {name}", lambda factory=factory: share(factory))
        if "error" in row:
            errors[name] = row["error"]
            continue
        rows[name] = row
        if name.startswith("smp:"):
            smallest[name] = (row["params"], name, factory)
        elif module not in smallest or row["params"] < smallest[module][0]:
            smallest[module] = (row["params"], name, factory)
    swaps, skipped = {}, {}
    for params, name, factory in smallest.values():
        if finished and f"swap {name}" not in done:
            continue
        if params > LARGEST:
            skipped[name] = f"{params / 1e6:.0f} M parameters"
        else:
            swaps[name] = cached(cache, f"swap {name}", lambda factory=factory: swap_really(factory))
    return {
        "torch": torch.__version__,
        "architectures": len(models),
        "planned": len(rows),
        "errors": errors,
        "share": {operator: _total(rows, operator) for operator in OPERATORS},
        "swapped_really": {
            "models": len(swaps),
            "failures": _failures(swaps),
            "skipped": skipped,
            "fold_": {name: value["fold_"] for name, value in swaps.items() if "fold_" in value},
        },
        "models": {n: [r["dense"], *(o["swapped"] for o in r["operators"].values())] for n, r in rows.items()},
    }


def _total(rows: dict[str, Any], operator: str) -> dict[str, Any]:
    dense = sum(row["dense"] for row in rows.values())
    kept: Counter[str] = Counter()
    for row in rows.values():
        kept.update(row["operators"][operator]["kept"])
    swapped, default = (sum(row["operators"][operator][key] for row in rows.values()) for key in ("swapped", "default"))
    return {
        "dense": dense,
        "swapped": swapped,
        "share": swapped / dense,
        "aim": OPERATORS[operator],
        "default": default,
        "default_share": default / dense,
        "kept": dict(kept.most_common()),
    }


def _failures(swaps: dict[str, Any]) -> dict[str, Any]:
    bad = {name: {k: v for k, v in value.items() if k != "fold_" and v != "ok"} for name, value in swaps.items()}
    return {name: value for name, value in bad.items() if value}


def shown(result: dict[str, Any]) -> str:
    """Format the report as text."""
    rows = [
        [
            operator,
            s["dense"],
            s["swapped"],
            f"{s['share']:.1%}",
            f"{s['aim']:.0%}",
            f"{s['default_share']:.1%}",
            ", ".join(f"{count} {reason}" for reason, count in s["kept"].items()),
        ]
        for operator, s in result["share"].items()
    ]
    really, columns = (
        result["swapped_really"],
        ["operator", "dense k>1", "swapped", "share", "aim", "by default", "the others"],
    )
    note = (
        f"{result['planned']} of {result['architectures']} architectures planned; really swapped, run, folded and "
        f"undone: {really['models']}, failures: {really['failures'] or 'none'}; errors: {result['errors'] or 'none'}"
    )
    return table(columns, rows, note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo_share.json")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/zoo_share.jsonl"), help="file of finished models, to resume"
    )
    parser.add_argument("--only", default="", help="models whose reference contains this text")
    parser.add_argument("--finished", action="store_true", help="report finished models only, run nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    result = collect(arguments.cache, arguments.only, arguments.finished)
    write_json(arguments.out, result)
    print(shown(result))


if __name__ == "__main__":
    main()
