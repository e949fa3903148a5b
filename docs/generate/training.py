"""The sections on the training step: against dense, our kernels against PyTorch's, and the share that a batch costs."""

import re
from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import kind_of_machine, machine
from docs.generate.speed import geometric


def _commands(content: dict[str, Any]) -> str:
    """Each command that printed a row, once."""
    return "; ".join(f"`{each}`" for each in dict.fromkeys(row["command"] for row in content["rows"]))


def training_kernels(stem: str, content: dict[str, Any]) -> str:
    """A row for each network and number type: geometric mean, worst and best layer, shares of the roofline floor."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in content["rows"]:
        groups.setdefault((row["dtype"], row["network"], row["threads"]), []).append(row)
    cells = []
    for (dtype, network, threads), rows in sorted(groups.items(), reverse=True):
        gains = [row["speedup"] for row in rows]
        shares = [f"{geometric(row['of_floor'][each] for row in rows):.0%}" for each in ("result", "data")]
        gain = f"{geometric(gains):.2f}x"
        cells.append(
            [f"{dtype}, {threads}", network, len(rows), gain, f"{min(gains):.2f}x", f"{max(gains):.2f}x", *shares]
        )
    head = ["dtype, threads", "layers of", "layers", "geometric mean", "worst", "best", "of the floor: result", "data"]
    return page(
        "## Depthwise layers in training: our kernels against PyTorch's",
        "Result and gradients of data, weights and bias together, against the faster of PyTorch's contiguous and "
        "channels_last layers, in this thread's computing time. Above 1 our kernels are faster. The floor is that of "
        "the roofline, for the result and for the gradient of the data alone. PyTorch is slow in bfloat16 without "
        "instructions for it: do not expect these ratios on a CPU that has them.",
        table(head, cells, "llrrrrrr"),
        f"{machine(content['rows'][0])}; {_commands(content)}, `{stem}.json`.",
    ).rstrip()


def training_steps(stem: str, content: dict[str, Any]) -> str:
    """A row for each network, threads and operator: step and peak memory against the dense network's."""
    rows = [row for row in content["rows"] if "of_dense" in row]
    rows.sort(key=lambda row: (row["network"], row["threads"], row["of_dense"]["middle"]))
    cells = [
        [
            f"{row['network']}, {row['threads']}",
            f"`{row['operator']}`",
            f"{row['ms']:.4g}",
            row["best"],
            f"{row['dense_ms']:.4g}",
            row["dense_best"],
            f"{row['of_dense']['middle']:.2f} ({row['of_dense']['low']:.2f} to {row['of_dense']['high']:.2f})",
            f"{row['macs'] / row['dense_macs']:.2f}" if "macs" in row else "-",
            f"{row['peak_bytes'] / row['dense_peak_bytes']:.2f}",
        ]
        for row in rows
    ]
    head = ["network, threads", "operator", "step ms", "best mode", "dense ms", "its best mode", "time of dense's"]
    return page(
        "## A training step against the dense network's",
        "Forward, loss and backward, each network in the fastest of its modes, in turns; medians, and two standard "
        "errors. With one thread this is its computing time. Below 1 the operator's step is cheaper than the dense "
        "one's. MACs are the operator's over the dense network's: MobileNetV1's own layers are depthwise-separable. "
        "Memory is the most that PyTorch's allocator holds during a step beside the model.",
        table([*head, "MACs", "peak memory of dense's"], cells, "llrlrlrrr"),
        f"{machine({'machine': content['rows'][0]['device']})}; {_commands(content)}, `{stem}.json`.",
    ).rstrip()


def keep_learnt(stem: str, content: dict[str, Any]) -> str:
    """A row for each operator in place of all convolutions: top-1 right after the swap, by its start."""
    cells = [
        [
            f"`{row['operator']}`",
            row["layers"],
            f"{row['dense_macs'] / row['macs']:.2f}",
            *(f"{100 * row[init]:.1f}" for init in ("fresh", "project", "fit")),
            f"{row['fit_cpu_seconds']:.0f}",
            *(f"{100 * row[key]['top1']:.1f}" if key in row else "-" for key in ("recovered_fit", "recovered_fresh")),
        ]
        for row in content["rows"]
    ]
    network, dense = content["network"], content["dense"]["top1"]
    head = ["operator", "layers", "times fewer MACs", "`fresh`", "`project`", "`fit`", "fit, s of a core"]
    return page(
        "## What is left of a trained network right after a swap",
        f"`{network['reference']}` after {network['epochs']} epochs on CIFAR-10: top-1 {100 * dense:.1f} % of "
        f"{content['test_images']} test images. The operator stands in place of all convolutions that it replaces, but "
        f"the first. A fit saw {content['fit_images']} training images, no label. The last two columns are "
        "after an epoch of the recipe `recover`, from the fit and from fresh layers, on all test images. `tucker2` is "
        "a known way to factorise a convolution, with the same fit; so is "
        "network decoupling (`decoupled`), which is `depthwise_separable(multiplier=...)` by now. One run each.",
        table([*head, "after an epoch", "from fresh"], cells, "lrrrrrrrr"),
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()


def lean_networks(stem: str, content: dict[str, Any]) -> str:
    """A row for each network and goal: its score before, right after the swap and recovered, and its measured speed."""
    cells = []
    for row in content["rows"]:
        speed, recovered, fresh = row["speed"], row["recovered"], row.get("fresh")
        what = ", ".join(f"{to} in {count}" for to, count in row["operators"].items())
        last = row["fitted"] if recovered is None else recovered
        cells.append(
            [
                f"`{row['network']}` on {row['data']}, {row['dense_epochs']} epochs",
                f"`--faster {row['goal']}`: {what}" if re.fullmatch(r"[\d.]+x", row["goal"]) else f"`{row['goal']}`",
                f"{row['dense']:.4f}",
                f"{row['fitted']:.4f}",
                "-" if recovered is None else f"{recovered:.4f} ({row['epochs']})",
                "-" if fresh is None else f"{fresh:.4f}",
                f"{last - row['dense']:+.4f}",
                f"{speed['middle']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "-",
                kind_of_machine(row),
                f"{sum(row['seconds'].get(each, 0) for each in ('plan', 'fit', 'recover')) / 60:.0f}",
            ]
        )
    head = ["network", "goal", "dense", "right after the swap", "recovered (epochs)", "from fresh", "against dense"]
    return page(
        "## A trained network made lean",
        "The command `lean`: top-1, or Dice over all pixels, of the test images. Speed is the dense "
        "network's time over the lean one's on one image (`--size`, else the run's), each on its best engine, in "
        "turns, with a 95 % interval. From fresh: the same training from new layers. The last column is of plan, fit "
        f"and recovery, by the wall.{_beside(content['rows'])} One run each.",
        table([*head, "times as fast", "on", "minutes"], cells, "llrrrrrrlr"),
        f"One thread each; {_commands(content)}, `{stem}.json`.",
    ).rstrip()


def _beside(rows: list[dict[str, Any]]) -> str:
    loads = [row["load"] for row in rows if "load" in row]
    return f" Other programs ran beside it (load up to {max(loads):.1f})." if loads and max(loads) > 1.5 else ""


def feature_error(stem: str, content: dict[str, Any]) -> str:
    """A table for each model and operator: the error of each block's output, projected and fitted."""
    parts = []
    for row in content["rows"]:
        weights = "trained" if row["trained"] else "random"
        took = f"{row['fit_cpu_seconds']:.0f} s of a core and {row['peak_mib_added']:.0f} MiB beside the model"
        agreed = (
            f" Same top-1: {row['project_agreement']:.1%} projected, {row['fit_agreement']:.1%} fitted."
            if row["trained"]
            else ""
        )
        parts.append(
            f"`{row['model']}`, {weights} weights, at {row['size']} px: `{row['operator']}` in {row['layers']} layers, "
            f"{row['dense_macs'] / row['macs']:.2f} times fewer MACs. The fit saw {row['fit_images']} photographs and "
            f"took {took}; errors are on {row['judged_images']} others.{agreed}"
        )
        cells = [[f"`{name}`", *(f"{row[init][name]:.3f}" for init in ("project", "fit"))] for name in row["features"]]
        parts.append(table(["block", "`project`", "`fit`"], cells, "lrr"))
    return page(
        "## How near a fit comes with some photographs",
        "The error of each block's output, errors of the blocks before it included: ‖lean - dense‖ / ‖dense‖. Random "
        "weights have BatchNorm statistics of the photographs.",
        *parts,
        f"{machine(content['rows'][0])}; {_commands(content)}, `{stem}.json`.",
    ).rstrip()


def data_loading(stem: str, content: dict[str, Any]) -> str:
    """A row for each data set and machine: computing time of a batch beside that of a step."""
    cells = [
        [
            row["data"],
            f"`{row['model']}`",
            machine({"machine": row["device"]}),
            row.get("mode", "channels_last"),
            f"{row['batch']} of {row['size']} px",
            f"{row['batch_cpu_ms']:.3g}",
            f"{row['step_cpu_ms']:.4g}",
            f"{row['batch_cpu_ms'] / row['step_cpu_ms']:.1%}",
        ]
        for row in content["rows"]
    ]
    head = ["data", "network", "machine", "mode", "batch", "batch, ms of a core", "step, ms of a core", "share"]
    return page(
        "## What a batch costs beside its step",
        "Computing time to draw, augment and stack a batch, and of the training step: in plain PyTorch, or in its "
        "fastest mode. A thread makes batches ahead, so on a second core the step does not wait for them.",
        table(head, cells, "lllllrrr"),
        f"{_commands(content)}, `{stem}.json`.",
    ).rstrip()
