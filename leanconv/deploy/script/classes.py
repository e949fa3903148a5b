"""The last part of a classifier's `infer.py`: class and score of all pictures."""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from leanconv.deploy.script.pictures import pictures, read, run_to_end, said
from leanconv.deploy.script.resize import resized
from leanconv.deploy.script.run_onnxruntime import open_model


def square(picture, size):  # uint8 H W 3 -> size size 3: the short side becomes 8/7 of it, then the middle is cut out
    (h, w), short = picture.shape[:2], min(picture.shape[:2])
    if (h, w) == (size, size):
        return picture
    wanted = round(size * 8 / 7) if short > size else size
    if short != wanted:
        h, w = max(size, round(h * wanted / short)), max(size, round(w * wanted / short))
        if h * w > max(1 << 24, 4 * size**2):
            raise ValueError(f"too long and narrow: would be {w}x{h} with a short side for squares of {size}")
        picture = resized(picture, h, w)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return picture[top : top + size, left : left + size]


def main():
    words = argparse.ArgumentParser(description="Print file, class and score of each picture as CSV.")
    words.add_argument("pictures", nargs="+", type=Path, help="files, or folders of them")
    given, failed = words.parse_args(), 0
    facts, run = open_model(Path(__file__).with_name("model.onnx"))
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["file", "class", "score"])
    for path in dict.fromkeys(pictures(given.pictures)):
        try:
            picture = square(read(path, facts["bits"]), facts["size"])
            scores = run(np.ascontiguousarray(picture)[None], "probability")[0]
            rows.writerow([path, facts["classes"][scores.argmax()], f"{scores.max():.4f}"])
        except Exception as error:
            failed += 1
            print(said(f"{path}: {error}"), file=sys.stderr)
    return failed > 0


if __name__ == "__main__":
    run_to_end(main)
