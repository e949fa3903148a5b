"""From photographs to masks, step by step, as a user goes: train, eval, predict, export, infer.py; each in a process.

    python -m benchmarks.photographs ROOT [--sets steel wafer tile] [--steps 120] [--resume] [--python BARE]

ROOT holds the sets' folders. The pictures of the test split are laid out as files first. Every command runs on one
thread, and its seconds contain imports and loading. On a busy machine compare CPU seconds. The training is a look, not
a result: its scores say only that the steps fit together. BARE is the Python that runs infer.py, best one without
leanconv and PyTorch.
"""

import argparse
import csv
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.operators import commit
from leanconv.files import write_json
from leanconv.measure.device import describe
from leanconv.table import table
from leanconv.train.data.samples import open_data

OUT = Path(__file__).parent / "results" / "photographs.json"
# The recipe, the folder under ROOT with what its masks need, and settings besides the steps.
SETS = {
    "steel": ("wafer", "neu_seg_steel?label=label_name", ["lr=5e-3", "zoom=1.5"]),
    "wafer": ("wafer", "wafer_surface_defects", ["lr=5e-3"]),
    "tile": ("magnetic_tile", "magnetic_tile_defects?side=128", ["lr=5e-3"]),
}
# infer.py as it stands; only its sessions have one thread, where ONNX Runtime would take one a core.
ONE_THREAD = """
import functools, runpy, sys, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession = functools.partial(onnxruntime.InferenceSession, sess_options=options)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STEPS = ("train", "eval", "predict", "export", "infer.py")


def measured(name: str, root: str, steps: int, python: str, folder: Path) -> dict[str, Any]:
    """All five steps of one set in an empty folder. Raises RuntimeError with the message of a step that fails."""
    recipe, data, settings = SETS[name]
    reference = f"{root.rstrip('/')}/{data}"
    count = lay_out(reference, folder / "pictures")
    tool = [sys.executable, "-m", "leanconv"]
    words = [f"data={reference}", "out=run", f"steps={steps}", "batch=8", "eval_every=1000", *settings]
    scripts = {
        "train": [*tool, "train", recipe, *words],
        "eval": [*tool, "eval", "run", "--threads", "1", "--json"],
        "predict": [*tool, "predict", "run", "pictures", "--out", "found", "--threads", "1", "--json"],
        "export": [*tool, "export", "run", "model/model.onnx", "--threads", "1"],
        "infer.py": [python, "-c", ONE_THREAD, "model/infer.py", "pictures", "--out", "masks"],
    }
    times, said = {}, {}
    for step, script in scripts.items():
        said[step], times[step] = timed(script, folder)
    scores, shown = json.loads(said["eval"]), json.loads(said["predict"])
    with (folder / "found" / "defects.csv").open(encoding="utf-8", newline="") as file:
        defects = list(csv.DictReader(file))
    return {
        "set": name, "load": os.getloadavg()[0],
        "recipe": recipe, "steps": steps, "settings": words[3:], "times": times, "pictures": count,
        "pictures_s": shown["seconds"], "defects": len(defects), "classes": sorted({each["class"] for each in defects}),
        "dice": scores["dice"], "image_dice": scores["image_dice"], **differing(folder / "found", folder / "masks"),
    }  # fmt: skip


def lay_out(reference: str, folder: Path) -> int:
    """Write the test images of a data reference as PNG files, losslessly, and return how many."""
    folder.mkdir()
    samples = open_data(reference.partition("?")[0], "test")
    for index in range(len(samples)):
        Image.fromarray(samples[index].image.permute(1, 2, 0).numpy()).save(folder / f"{index:04d}.png")
    return len(samples)


def timed(script: list[str], folder: Path) -> tuple[str, dict[str, float]]:
    """What a command prints, and its seconds by the wall and of the CPU."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder, env=os.environ | one)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(script)}: {done.stderr[-2000:]}")
    return done.stdout, {"s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def differing(ours: Path, theirs: Path) -> dict[str, int]:
    """Pixels of the masks in both folders, and how many differ. Raises RuntimeError if their names or sizes differ."""
    names = sorted(path.name for path in ours.glob("*_mask.png"))
    if not names or names != sorted(path.name for path in theirs.glob("*_mask.png")):
        raise RuntimeError(f"{ours} has {len(names)} masks, and {theirs} has others")
    found = {"pixels": 0, "pixels_differ": 0}
    for name in names:
        with Image.open(ours / name) as first, Image.open(theirs / name) as second:
            if first.size != second.size:
                raise RuntimeError(f"{name}: sizes {first.size} and {second.size}")
            found["pixels"] += first.width * first.height
            found["pixels_differ"] += int((np.asarray(first) != np.asarray(second)).sum())
    return found


def show(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["set"], row["pictures"], *(f"{row['times'][step]['s']:.1f}" for step in STEPS), row["defects"],
            f"{row['pixels_differ']:,} of {row['pixels']:,}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(["set", "pictures", *(f"{step} s" for step in STEPS), "defects", "pixels that differ"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--steps", type=int, default=120, help="of each training")
    parser.add_argument("--python", default=sys.executable, help="runs infer.py; it needs onnxruntime, numpy, pillow")
    parser.add_argument("--resume", action="store_true", help="leave out sets that --out has of this commit")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    machine, here = describe("cpu"), commit()
    rows = {row["set"]: row for row in old.get("rows", []) if old.get("machine") == machine}
    report = {"command": f"python -m benchmarks.photographs DATA --steps {given.steps}", "commit": here}
    for name in given.sets:
        held = rows.get(name, {})
        if given.resume and held.get("commit") == here and held.get("steps") == given.steps:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = given.root if "://" in given.root else str(Path(given.root).resolve())
            rows[name] = measured(name, root, given.steps, given.python, Path(folder)) | {"commit": here}
        ordered = [rows[each] for each in SETS if each in rows]
        write_json(given.out, report | {"machine": machine, "rows": ordered})
        print(show([rows[name]]), flush=True)
    print(show([rows[each] for each in SETS if each in rows]))


if __name__ == "__main__":
    main()
