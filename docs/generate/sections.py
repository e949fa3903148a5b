"""The sections on accuracy and on what a swap reaches, one function for each kind of results file."""

from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import dense_row, front, machine, macs_of
from leanconv.table import si

SCORES = {"dice": "Dice, all pixels", "image_dice": "Dice, mean over images", "image_iou": "IoU, mean over images"}


def trained(stem: str, content: dict[str, Any], key: str, task: str) -> str:
    """One training budget for several operators: scores, costs, and which rows are the best for their MACs."""
    rows, dense = content["rows"], dense_row(content["rows"])
    titles = SCORES if key == "dice" else {"top1": "top-1", "top5": "top-5"}
    marks = front([(macs_of(row), score(row, key)) for row in rows])
    cells = []
    for row, is_best in sorted(zip(rows, marks), key=lambda pair: -score(pair[0], key)):
        cell = [name(row), si(macs_of(row)), si(row["params"]), *(mean(row, k) for k in titles)]
        if dense is not None:
            less = f"{macs_of(dense) / macs_of(row):.2f}"
            cell += [less, f"{score(row, key) - score(dense, key):+.3f}", "yes" if is_best else ""]
        cells.append(cell)
    head = ["model", "MACs", "params", *titles.values()]
    head += ["times fewer MACs", f"{titles[key]}: against dense", "on the front"] if dense is not None else []
    seeds = min(row["seeds"] for row in rows)
    caution = f"Mean of {seeds} seeds."
    if seeds == 1:
        some = "a row" if max(row["seeds"] for row in rows) == 1 else "where no spread stands"
        caution = f"One seed {some}: differences of a few hundredths are noise."
    note = (
        f"{caution} On the front: no other row is as cheap and better. "
        if dense is not None
        else f"{caution} No dense network was trained on this budget, so nothing is compared. "
    )
    return page(
        f"## {task}: {budget(stem, content)}",
        table(head, cells, "l" + "r" * (4 + len(titles))),
        f"{note}Split: {content['split']}. {machine(content)}; `{content['command']}`, `{stem}.json`.",
        rates(content),
    ).rstrip()


def rates(content: dict[str, Any]) -> str:
    """Images per second of the trained networks, where they were timed."""
    speed = content.get("speed")
    if not speed:
        return ""
    rates = {kind: speed[kind]["images_per_s"] for kind in ("forward", "train")}
    rows = [
        [f"`{text}`", *(cell for kind in rates for cell in rate(rates[kind], text))]
        for text in sorted(rates["forward"], key=lambda text: -rates["forward"][text])
    ]
    head = ["operator", "forward img/s", "× dense", "training img/s", "× dense"]
    return f"{table(head, rows, 'lrrrr')}\n\nImages per second: {speed['clock']}, {speed['layout']}."


def rate(rates: dict[str, float], text: str) -> tuple[str, str]:
    if text not in rates:
        return "-", "-"
    dense = rates.get("conv")
    return f"{rates[text]:.0f}", f"{rates[text] / dense:.2f}" if dense else "-"


def shares(stem: str, content: dict[str, Any]) -> str:
    """How many convolutions of public networks an operator takes."""
    rows, missed = [], []
    for text, found in content["share"].items():
        kept = ", ".join(f"{count:,} {reason}" for reason, count in found["kept"].items())
        shares = (f"{100 * found[key]:.1f} %" for key in ("share", "default_share"))
        rows.append([f"`{text}`", f"{found['swapped']:,}", *shares, kept])
        if found["share"] < found["aim"]:
            missed.append(f"`{text}` misses our aim of {100 * found['aim']:.0f} %.")
    dense = next(iter(content["share"].values()))["dense"]
    return page(
        "## Will it fit my network?",
        f"Planned, not trained, on {content['architectures']:,} public architectures; {content['planned']:,} have "
        f"dense k×k convolutions, {dense:,} in all.",
        table(["operator", "swapped", "share", "share without `where`", "kept because"], rows, "lrrrl"),
        f"{' '.join(missed)} Without `where`, `plan` leaves a network's first convolution. Options that do not divide "
        f"the channels (HetConv's `part`) can be chosen per layer: `to` takes a function too. "
        f"`python -m benchmarks.zoo_share`, `{stem}.json`.".strip(),
    ).rstrip()


def score(row: dict[str, Any], key: str) -> float:
    """A row's mean over its seeds."""
    return float(row[key]["mean"])


def mean(row: dict[str, Any], key: str) -> str:
    """The same as text, with its spread where there is one."""
    spread = row[key]["stdev"]
    return f"{row[key]['mean']:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")


def name(row: dict[str, Any]) -> str:
    """What a row is called."""
    return str(row["model"]) if "model" in row else f"`{row['operator']}`"


def named(rows: list[dict[str, Any]]) -> str:
    """Rows in a list."""
    return ", ".join(name(row) for row in rows)


def share(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """A row's MACs against the dense network's."""
    return f"{100 * macs_of(row) / macs_of(dense):.0f} %"


def codes(texts: list[str]) -> str:
    """Operator strings in a list."""
    return ", ".join(f"`{text}`" for text in texts)


def budget(stem: str, content: dict[str, Any]) -> str:
    """A file's data and training in words: what its name says, and the epochs or steps that its command asks for."""
    asked = [word.partition("=") for word in content["command"].split() if word.startswith(("epochs=", "steps="))]
    budget = f"{content['epochs']} epochs" if "epochs" in content else ", ".join(f"{n} {unit}" for unit, _, n in asked)
    about = " ".join(word for word in stem.split("_")[1:] if not word.endswith(("epochs", "steps")))
    return f"{about}, {budget}" if budget else about
