"""Behind: a thread finishes each picture (defects, overlay, files) while the network works on the next one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def behind(steps: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Call each function in a thread while the next one is made, and give the results in order.

    An exception of a function arrives where its result would. If making the next one fails, or Ctrl-C stops it, the
    result before it is given first.
    """
    threads = torch.get_num_threads()
    # One thread of PyTorch's: the cores belong to the network.
    with ThreadPoolExecutor(1, "leanconv files", torch.set_num_threads, (1,)) as pool:
        running: Future[T] | None = None
        coming = iter(steps)
        while True:
            # New threads take the number that was set last, in whatever thread.
            torch.set_num_threads(threads)
            failure: BaseException | None = None
            step = None
            try:
                step = next(coming, None)
            except (Exception, KeyboardInterrupt) as error:
                failure = error
            done, running = running, None if step is None else pool.submit(step)
            if done is not None:
                yield done.result()
            if failure is not None:
                raise failure
            if step is None:
                return
