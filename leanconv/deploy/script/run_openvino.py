"""The part of `infer.py` that opens an OpenVINO file."""

import json

import openvino


def open_model(path):  # what the file says of itself; uint8 N H W 3 and an output's name -> that output
    model = (core := openvino.Core()).read_model(str(path))
    run = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = json.loads(model.get_rt_info(["leanconv"]).value)
    return facts, lambda frames, output: run({"image": frames})[output]
