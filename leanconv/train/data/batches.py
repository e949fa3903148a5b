"""The order of the images and their augmentation as functions of (seed, step): a resumed run sees the same batches."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from leanconv.errors import BadInput


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

    def between(self, start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
        """The batches of the steps start ... stop - 1."""
        return (self.at(step) for step in range(start, stop))

    def _permutation(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._images: list[int] = torch.randperm(self.count, generator=generator).tolist()
            self._epoch = epoch
        return self._images


class _Seeded(Dataset[Any]):
    """Samples after a random transform, seeded by the number that comes with the index."""

    def __init__(self, samples: Any, transform: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        self.samples, self.transform = samples, transform

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Any] | BadInput:
        index, seed = place
        try:
            sample = self.samples[index]
        except BadInput as error:  # raised in a worker process it would arrive with the worker's whole traceback
            return error
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(*sample[:2])
        finally:
            torch.set_rng_state(before)


def batches(
    samples: Any,
    transform: Callable[[Tensor, Any], tuple[Tensor, Any]],
    order: Order,
    start: int,
    stop: int,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images `N 3 H W`, masks `N H W` or labels `N`) of the steps start ... stop - 1, in order.

    `workers` processes prepare them; 0: this one.

    Raises: BadInput for a file that cannot be read (any more).
    """
    loader = DataLoader(
        _Seeded(samples, transform),
        batch_sampler=_Steps(order, start, stop),
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        # Its own generator: the workers' base seed must not advance the model's random numbers.
        generator=torch.Generator().manual_seed(order.seed),
        pin_memory=pin_memory,
        collate_fn=_collate,
    )
    for batch in loader:
        if isinstance(batch, BadInput):
            raise batch
        yield batch


def _collate(samples: list[Any]) -> Any:
    """The batch; or the first error in it."""
    bad = next((sample for sample in samples if isinstance(sample, BadInput)), None)
    return default_collate(samples) if bad is None else bad


class _Steps:
    def __init__(self, order: Order, start: int, stop: int) -> None:
        self.order, self.start, self.stop = order, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.order.between(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process finishes its step and ends the workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
