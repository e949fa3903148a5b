"""The processes of one training run: sums over all of them, equal buffers and words, a joint stop."""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.extras import needs


class Processes:
    """Accelerate's processes.

    Attributes:
        count, rank: their number, and this one's place.
        main: whether this one writes the files.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count, self.rank, self.main = (
            accelerator.num_processes,
            accelerator.process_index,
            accelerator.is_main_process,
        )

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.count == 1:
            return values
        return self._accelerator.reduce(values.clone().to(self._accelerator.device), "sum")  # type: ignore[no-any-return]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return values if self.count == 1 else self.total(values) / self.count

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return bool(self.total(torch.tensor(float(flag), device=self._accelerator.device)) > 0)

    def word(self, own: str) -> str:
        """The main process's word."""
        if self.count == 1:
            return own
        with needs("accelerate", "train"):
            from accelerate.utils import broadcast_object_list

        words: list[str] = broadcast_object_list([own])
        return words[0]

    def share_buffers(self, net: nn.Module) -> None:
        """Copy the first process's buffers to all: BatchNorm statistics drift apart, and its own are saved."""
        if self.count > 1:
            for buffer in net.buffers():
                torch.distributed.broadcast(buffer, 0)
