"""Memory between pages that must not be touched, and kernels that are run on it in a child process."""

import ctypes
import mmap
import os

import torch

PAGE = mmap.PAGESIZE


def span(x):
    """How many numbers lie from the first to the last: weights share their memory with others."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def fenced(x, after):
    """A copy whose last number is the last of its page (`after`), or its first the first; no neighbour is readable."""
    length = span(x) * x.itemsize
    pages = -(-length // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + (pages + 1) * PAGE):
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), PAGE, 0)
    at, size = PAGE + pages * PAGE - length if after else PAGE, x.itemsize
    made = torch.frombuffer(memory, dtype=x.dtype, count=length // size, offset=at // size * size)
    return made.as_strided(x.shape, x.stride()).copy_(x)


def assert_touches_nothing_else(cases, computed, after):
    """Each operand of each case between such pages: the same results as elsewhere, and no crash.

    Args:
        cases: names or sizes, and the arguments that `computed` takes beside `around`.
    """
    expected = [computed(*given) for _, given in cases]
    at = mmap.mmap(-1, PAGE)  # shared with the child: the case that it is at
    child = os.fork()
    if not child:
        for index, (_, given) in enumerate(cases):
            at[0] = index
            found = computed(*given, around=lambda t: fenced(t, after))
            if not all(torch.equal(a, b) for a, b in zip(found, expected[index], strict=True)):
                os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"status {status} at {cases[at[0]][0]}"
