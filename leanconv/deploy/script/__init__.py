"""`script`: the text of `infer.py`, which runs an exported file without leanconv.

Its parts are the other files of this folder: numpy, PIL and one runtime each. They are put together here, without their
imports from each other.
"""

import ast
import json
from pathlib import Path

from leanconv.files import origin

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}
_SAYS = {
    "segment": "Writes the masks that `leanconv predict` writes, into --out.",
    "classify": "Prints file, class and score as CSV, as `leanconv predict` finds them.",
}
_EXAMPLES = {
    "segment": """
    facts, run = open_model("model.onnx")
    picture = read("PICTURE", facts["bits"])
    logits = tiled(picture, facts, run)  # O H W
    classes = class_map(logits, facts["threshold"])  # indices H W
""",
    "classify": """
    facts, run = open_model("model.onnx")
    picture = square(read("PICTURE", facts["bits"]), facts["size"])
    scores = run(np.ascontiguousarray(picture)[None], "probability")[0]  # one for each of facts["classes"]
""",
}


def script(path: Path, *, task: str, resizes: bool) -> str:
    """Return the text of `infer.py` for an exported file.

    Args:
        path: the file; its suffix decides the runtime.
        task: `segment` or `classify`.
        resizes: whether pictures change their size before the network.
    """
    runtime, last = RUNTIMES[path.suffix], {"segment": "masks", "classify": "classes"}[task]
    parts = [f"run_{runtime}", "pictures"]
    parts += ["resize"] if resizes else []
    parts += ["tiles"] if task == "segment" else []
    parts += ["reduced"] if task == "segment" and resizes else []
    imports, bodies = dict[str, set[str]](), list[str]()
    for part in (*parts, last):
        bodies.append(_taken(part, imports))
    head = f"""Run an exported network on pictures: python infer.py PICTURE_OR_FOLDER...

{_SAYS[task]} Needs {runtime}, numpy and pillow.
An unusable picture is one line, and exit status 1. This file was {origin()}.

In a program of your own, after `from infer import *`:
{_named(_EXAMPLES[task], path).replace(chr(92), 2 * chr(92))}"""
    text = f'"""{head}"""\n\n{_written(imports)}\n\n\n' + _named("\n\n\n".join(bodies), path) + "\n"
    if "reduced" in parts:
        text = text.replace("logits = tiled(picture", "logits = reduced(picture")
    return text


def _named(text: str, path: Path) -> str:
    return text.replace('"model.onnx"', json.dumps(path.name, ensure_ascii=False))


def _taken(part: str, imports: dict[str, set[str]]) -> str:
    """Return a part's text below its imports, and add those: what stands before the names, and the names."""
    text = (Path(__file__).parent / f"{part}.py").read_text(encoding="utf-8")
    end = 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] != "leanconv":
            imports.setdefault(f"from {node.module} import ", set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            imports.setdefault(ast.unparse(node), set())
        if isinstance(node, ast.Import | ast.ImportFrom):
            end = node.end_lineno or 0
    return "\n".join(text.splitlines()[end:]).strip()


def _written(imports: dict[str, set[str]]) -> str:
    """The lines of the imports: the standard library's, then the others."""
    groups: tuple[list[str], list[str]] = ([], [])
    for line, names in sorted(imports.items(), key=lambda each: (each[0].startswith("from"), each[0])):
        groups[line.split()[1] in ("numpy", "PIL", *RUNTIMES.values())].append(line + ", ".join(sorted(names)))
    return "\n\n".join("\n".join(group) for group in groups)
