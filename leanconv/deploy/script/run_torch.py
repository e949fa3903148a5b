"""The part of `infer.py` that opens a torch.export file."""

import json

import torch


def open_model(path):  # what the file says of itself; uint8 N H W 3 and an output's name -> that output
    run = torch.export.load(str(path), extra_files=(said := {"leanconv.json": ""})).module()
    return json.loads(
        said["leanconv.json"]
    ), lambda frames, output: run(image=torch.from_numpy(frames))[output].detach().numpy()
