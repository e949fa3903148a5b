"""`leanconv recipes [NAME]`: list the built-in recipes, or print one as a file to start from."""

import json as _json
import shutil
import textwrap
from typing import Annotated, Any

import typer

from leanconv import recipes
from leanconv.cli.common import Json


def command(
    name: Annotated[
        str | None, typer.Argument(help="A recipe: prints its file. leanconv recipes wafer > mine.toml copies it.")
    ] = None,
    json: Json = False,
) -> None:
    """List the built-in recipes: task, model, what each is for, and its command. With NAME, print that file."""
    if name is not None:
        found = recipes.get(name)
        print(_json.dumps(_row(found) | {"text": found.text}, indent=2) if json else found.text.rstrip("\n"))
        return
    rows = [_row(recipes.get(each)) for each in recipes.names()]
    if json:
        print(_json.dumps({"recipes": rows}, indent=2))
        return
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    for drafts in (False, True):
        chosen = [row for row in rows if row["draft"] is drafts]
        if drafts and chosen:
            print("Settings of papers, and other drafts. They were not run here as they stand:\n")
        for row in chosen:
            print(_shown(row, width), end="\n\n")
    print("leanconv recipes NAME > mine.toml copies a recipe; leanconv train mine.toml runs the copy.")


def _row(found: recipes.BuiltIn) -> dict[str, Any]:
    values = found.values
    return {
        "name": found.name,
        "task": values.get("task", "the teacher's" if values.get("teacher") else "auto"),
        "model": values.get("model", f"the teacher's ({values.get('teacher')})"),
        **({"swap": values["swap"]} if values.get("swap") else {}),
        "purpose": found.purpose,
        "command": found.commands[0],
        "draft": found.draft,
    }


def _shown(row: dict[str, Any], width: int) -> str:
    """A recipe as lines: name and task, what it is for, model, command."""
    swap = f", swapped: {row['swap']}" if "swap" in row else ""
    lines = [f"model    {row['model']}{swap}", f"command  {row['command']}"]
    purpose = textwrap.fill(row["purpose"], width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([f"{row['name']} ({row['task']})", purpose, *(f"  {line}" for line in lines)])
