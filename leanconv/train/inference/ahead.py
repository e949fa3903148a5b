"""Reading ahead: the next pictures are decoded in a thread while the network works on the present one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from leanconv.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

# Pictures that wait, decoded. A picture of 100 megapixels takes 300 MB.
AHEAD = 2


def read_ahead(items: Iterable[T], read: Callable[[T], R]) -> "Iterator[tuple[T, R | BadInput]]":
    """Each item with what `read` gives, in order; its BadInput is a result too. One thread calls `read`."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(1, "read") as thread:
        try:
            for item in items:
                waiting.append((item, thread.submit(read, item)))
                if len(waiting) > AHEAD:
                    yield _first(waiting.popleft())
            while waiting:
                yield _first(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _first(waiting: tuple[T, Future[Any]]) -> tuple[T, Any]:
    item, future = waiting
    try:
        return item, future.result()
    except BadInput as error:
        return item, error
