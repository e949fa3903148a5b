"""Digests of models and tensors: whether something that was kept belongs to these very weights."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def of_model(model: nn.Module) -> str:
    """A SHA-256 of a model's layers, parameters and buffers."""
    made = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            made.update(name.encode())
            _update(made, tensor)
    return made.hexdigest()


def of_tensors(values: Iterable[Tensor]) -> str:
    """A SHA-256 of numbers, shapes and types."""
    made = hashlib.sha256()
    for tensor in values:
        _update(made, tensor)
    return made.hexdigest()


def _update(made: Any, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous()
    made.update(f"{tuple(flat.shape)} {flat.dtype}".encode())
    made.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
