"""The last part of a segmentation's `infer.py`: masks of all pictures."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from leanconv.deploy.script.pictures import pictures, read, run_to_end, said
from leanconv.deploy.script.run_onnxruntime import open_model
from leanconv.deploy.script.tiles import tiled


def class_map(logits, threshold):  # O H W -> class indices H W; threshold: one, one a class but the background, or None
    if len(logits) > 1 and threshold is None:
        return logits.argmax(0).astype(np.uint8)
    with np.errstate(over="ignore"):
        powers = np.exp(logits - logits.max(0) if len(logits) > 1 else -logits)
    likely = powers[1:] / powers.sum(0) if len(logits) > 1 else 1 / (1 + powers)  # softmax without 0, or sigmoid
    least = np.broadcast_to(np.float32(threshold), len(likely))[best := likely.argmax(0)]
    return np.where(likely.max(0) >= least, best + 1, 0).astype(np.uint8)


def main():
    words = argparse.ArgumentParser(description="Write a mask of each picture: 0 and 255, or class indices.")
    words.add_argument("pictures", nargs="+", type=Path, help="files, or folders of them")
    words.add_argument("--out", type=Path, default=Path("masks"), help="folder for PICTURE_mask.png (default: masks)")
    words.add_argument("--threshold", type=float, help="default: the run's own, which stands in the file")
    words.add_argument("--overwrite", action="store_true", help="replace masks that are there")
    given, failed = words.parse_args(), 0
    facts, run = open_model(Path(__file__).with_name("model.onnx"))
    threshold = facts["threshold"] if given.threshold is None else given.threshold
    paths = list(dict.fromkeys(pictures(given.pictures)))
    masks = {path: given.out / f"{path.stem}_mask.png" for path in paths}
    if len({str(mask).casefold() for mask in masks.values()}) < len(masks):
        raise ValueError("two pictures have one name and would have one mask: run them apart")
    if given.out.resolve() in {path.resolve().parent for path in paths}:
        raise ValueError(f"{given.out} holds the pictures themselves: give another --out")
    for path, mask in masks.items():
        try:
            if mask.exists() and not given.overwrite:
                raise OSError(f"{mask} is there already: say --overwrite, or another --out")
            picture = read(path, facts["bits"])
            logits = tiled(picture, facts, run)
            classes = class_map(logits, threshold)
            given.out.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(classes * np.uint8(255 if len(logits) <= 2 else 1))
            if len(logits) > 2:
                image.putpalette([part for colour in facts["palette"] for part in colour])
            image.save(draft := mask.with_name(f".{os.getpid()}_{mask.name}"), format="PNG")
            os.replace(draft, mask)
        except Exception as error:
            failed += 1
            print(said(f"{path}: {error}"), file=sys.stderr)
    return failed > 0


if __name__ == "__main__":
    run_to_end(main)
