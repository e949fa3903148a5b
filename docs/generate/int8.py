"""The section on what int8 costs a trained network."""

from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import machine


def int8_accuracy(stem: str, content: dict[str, Any]) -> str:
    """Dice in float32, and what each engine's int8 form loses of it."""
    rows = content["rows"]
    cells = [
        [
            f"`{row['reference']}`",
            row["engine"],
            f"{row['dice']:.4f}",
            f"{row['lost']:+.4f}" if "lost" in row else "-",
            "-" if row["val_loss"] is None else f"{row['val_loss']:+.4f}",
            "yes" if row["val_loss"] is not None and row["val_loss"] <= row["max_loss"] else "refused",
            row.get("int8", "").removeprefix("int8: ").partition(",")[0] or "-",
        ]
        for row in rows
    ]
    head = [
        "network",
        "engine",
        "test Dice in float32",
        "lost in int8",
        "lost on validation images",
        "taken",
        "blocks",
    ]
    limit = " and ".join(f"{each:g}" for each in sorted({row["max_loss"] for row in rows}))
    return page(
        "## What int8 costs a trained network",
        "Dice over all pixels of the test images, which decided nothing. The form is the one that "
        "`optimize(..., dtype=torch.int8, data=..., metric=...)` makes of each engine: ranges from images of the train "
        f"split, Dice of the validation images as the metric, at most {limit} of it lost. A loss below 0 is a gain.",
        table(head, cells, "llrrrll"),
        f"{rows[0]['images']} test images, cut to their middle; networks trained for "
        f"{' and '.join(str(each) for each in dict.fromkeys(row['epochs'] for row in rows))} epochs on "
        f"{' and '.join(dict.fromkeys(row['data'] for row in rows))}. "
        f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
    ).rstrip()
