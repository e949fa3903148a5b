"""`leanconv predict` of two runs on one folder of images, in turns: seconds of the pictures, and CPU seconds in all.

    python -m benchmarks.predict_folder DENSE_RUN LEAN_RUN IMAGES --threads 1 --rounds 5

Each round is a process of its own for each run, as a user starts it, and writes to an empty folder. The first
processes find and keep the fastest engine of each run (`--engine` names one instead); they are not counted. CPU seconds contain imports and loading, the
seconds of the pictures do not. On a busy machine compare CPU seconds at one thread.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_UP = 4  # processes until the engine is found: plain PyTorch, the race, the kept choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, metavar="RUN")
    parser.add_argument("images", metavar="IMAGES")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        times: dict[str, list[tuple[float, float]]] = {run: [] for run in given.runs}
        for turn in range(WARM_UP + given.rounds):
            for run in given.runs:
                seen = predicted(run, given.images, Path(out) / f"{turn}-{Path(run).name}", given.threads, given.engine)
                if turn >= WARM_UP:
                    times[run].append(seen)
    medians = {run: [statistics.median(each) for each in zip(*seen, strict=True)] for run, seen in times.items()}
    for run, (pictures, cpu) in medians.items():
        spread = ", ".join(f"{low:.2f}" for low, _ in sorted(times[run]))
        print(f"{run}: {pictures:.2f} s for the pictures ({spread}); {cpu:.2f} CPU seconds in all")
    first, second = medians.values()
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    print(f"second / first: pictures {ratios[0]:.2f}, CPU {ratios[1]:.2f}; {given.threads} thread(s)")


def predicted(run: str, images: str, out: Path, threads: int, engine: str) -> tuple[float, float]:
    """Seconds from the first image that is read to the last that is written, and CPU seconds of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["predict", run, images, "--out", str(out), "--threads", str(threads), "--engine", engine, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "leanconv", *words],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(json.loads(done.stdout)["seconds"]), cpu


if __name__ == "__main__":
    main()
