"""The part of `infer.py` that opens an ONNX file."""

import json

import onnxruntime


def open_model(path):  # what the file says of itself; uint8 N H W 3 and an output's name -> that output
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["leanconv"])
    return facts, lambda frames, output: session.run([output], {"image": frames})[0]
