"""Ahead: a thread computes the next values (batches, decoded pictures) while the network works on the present one."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch

from leanconv.errors import BadInput

# Values that a thread computes before they are asked for, and the seconds after which it looks whether it should end.
# A decoded picture of 100 megapixels takes 300 MB.
DEPTH, _LOOK_S = 2, 0.1
_END = object()

T = TypeVar("T")
R = TypeVar("R")


def ahead(values: Iterator[T], depth: int = DEPTH) -> Generator[T, None, None]:
    """The same values in order, up to `depth` of them computed in a thread before they are asked for.

    An exception arrives where its value would. The thread ends with the values, or when this iterator is closed.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(value: Any, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((value, error), timeout=_LOOK_S)
                return True
        return False

    def compute() -> None:
        torch.set_num_threads(1)  # of this thread: the cores belong to the network
        try:
            for value in values:
                if not put(value):
                    return
            put(_END)
        except BaseException as error:
            put(None, error)

    threads = torch.get_num_threads()
    thread = threading.Thread(target=compute, name="leanconv batches", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            torch.set_num_threads(threads)  # new threads take the number that was set last, in whatever thread
            if error is not None:
                raise error
            if value is _END:
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def read_ahead(items: Iterable[T], read: Callable[[T], R]) -> "Iterator[tuple[T, R | BadInput]]":
    """Each item with what `read` gives, in order and ahead; its BadInput is a result too."""

    def done(item: T) -> "tuple[T, R | BadInput]":
        try:
            return item, read(item)
        except BadInput as error:
            return item, error

    return ahead(map(done, items))
