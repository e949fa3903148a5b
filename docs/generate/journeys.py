"""The section on photographs: the time of each command from the images to the masks of `infer.py`."""

from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import machine

COMMANDS = ("train", "eval", "predict", "export", "infer.py")


def journeys(stem: str, content: dict[str, Any]) -> str:
    """Two tables of one file: the time of each command, and what came out."""
    rows = content["rows"]
    times = [
        [row["set"], row["pictures"], *(f"{row['times'][each]['cpu_s']:.1f} ({row['times'][each]['s']:.1f})"
         for each in COMMANDS)]
        for row in rows
    ]  # fmt: skip
    found = [
        [
            row["set"], f"`{row['recipe']}`", row["steps"], f"{row['dice']:.3f}", row["defects"],
            ", ".join(row["classes"]) or "-",
            f"{row['pixels_differ']:,} of {row['pixels']:,}",
        ]
        for row in rows
    ]  # fmt: skip
    load = max(row["load"] for row in rows)
    busy = f"Other programs ran beside it (load up to {load:.1f}): compare CPU seconds. " if load > 1.5 else ""
    head = ["set", "recipe", "steps", "test Dice", "defects", "classes found"]
    return page(
        "## From photographs to masks",
        "CPU seconds of each command, in brackets those by the wall. Each is a process of its own on one thread, with "
        f"its imports and files. {busy}`eval`, `predict` and `infer.py` take the same test pictures; `export` compares "
        "the file with the model on the validation images.",
        table(["set", "pictures", *(f"`{each}`" for each in COMMANDS)], times, "lr" + "r" * len(COMMANDS)),
        table([*head, "pixels in which `infer.py` differs"], found, "llrrrlr"),
        "So few steps are a look: they show that the commands fit together, not how well a network learns. "
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()
