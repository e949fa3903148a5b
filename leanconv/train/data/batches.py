"""The order of the images and their augmentation as functions of (seed, step): a resumed run sees the same batches."""

import hashlib
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leanconv.errors import BadInput
from leanconv.train.data.ahead import ahead
from leanconv.train.data.augment import Augmentation

Batch = tuple[Tensor, Tensor]


def mix(*numbers: int) -> int:
    """A 32-bit seed from several numbers; near numbers give unrelated seeds."""
    text = ",".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


class Order:
    """The images of a process at each step: a new permutation per epoch, without its incomplete last batch.

    A set smaller than a batch is repeated until it fills one.
    """

    def __init__(self, count: int, batch: int, seed: int, *, rank: int = 0, processes: int = 1) -> None:
        if not count:
            raise BadInput("there are no training images")
        if batch % processes:
            raise BadInput(f"batch={batch} does not divide over {processes} processes")
        self.count, self.batch, self.seed, self.rank, self.processes = count, batch, seed, rank, processes

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, at least one."""
        return max(1, self.count // self.batch)

    def at(self, step: int) -> list[tuple[int, int]]:
        """(image, seed of its augmentation) of this process at a step."""
        places = self._places(step)
        return [(image, mix(self.seed, step, place)) for image, place in zip(self.images(step), places, strict=True)]

    def images(self, step: int) -> list[int]:
        """The images of this process at a step."""
        order = self._permutation(step // self.steps_per_epoch)
        return [order[place % self.count] for place in self._places(step)]

    def _places(self, step: int) -> range:
        within = step % self.steps_per_epoch
        return range(within * self.batch + self.rank, (within + 1) * self.batch, self.processes)

    def _permutation(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._images: list[int] = torch.randperm(self.count, generator=generator).tolist()
            self._epoch = epoch
        return self._images


def augmented(samples: Any, augmentation: Augmentation, order: Order, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: decoded samples after their augmentation. Raises BadInput for an unreadable file."""
    places = order.at(step)
    return augmentation.batch([samples[index] for index, _ in places], [seed for _, seed in places])


def batches(
    batch: Callable[[int], Batch], start: int, stop: int, *, workers: int = 0, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """Batches (images `N 3 H W`, masks `N H W` or labels `N`) of the steps start ... stop - 1, in order.

    They are prepared while the network trains, by `workers` processes, or by a thread if that is 0. Close the iterator
    to end the thread before the last step.

    Args:
        batch: gives the batch of a step; it draws from no generator of the process.
        pin_memory: in memory that a GPU copies from by itself.
    Raises: BadInput for a file that cannot be read (any more).
    """
    steps = range(start, stop)
    if not workers:
        made = map(batch, steps)
        yield from ahead(_pinned(made) if pin_memory else made)
        return
    loader = DataLoader(
        _Steps(batch, steps),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        # Its own generator: the workers' base seed must not advance the model's random numbers.
        generator=torch.Generator().manual_seed(0),
        pin_memory=pin_memory,
    )
    for made_or_error in loader:
        if isinstance(made_or_error, BadInput):
            raise made_or_error
        yield tuple(made_or_error)


def _pinned(made: Iterator[Batch]) -> Iterator[Batch]:
    return ((images.pin_memory(), truth.pin_memory()) for images, truth in made)


class _Steps(Dataset[Any]):
    """The batches of some steps, for a DataLoader."""

    def __init__(self, batch: Callable[[int], Batch], steps: range) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, place: int) -> Batch | BadInput:
        try:
            return self.batch(self.steps[place])
        except BadInput as error:  # raised in a worker process it would arrive with the worker's whole traceback
            return error


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process finishes its step and ends the workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
