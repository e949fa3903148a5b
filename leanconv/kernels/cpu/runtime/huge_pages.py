"""Memory in huge pages, where the system has them: for maps and weights that a call reads from end to end.

With small pages, a map needs more entries than the translation buffer (TLB) has. The core's own prefetch stops at the
end of each page.
"""

import contextlib
import mmap
import threading

import torch
from torch import Tensor

HUGE = 1 << 21  # bytes of a huge page
ALIGN = 64  # bytes; a line of the cache, a vector of AVX-512
_CHUNK = 4 * HUGE
_BEYOND = 4096  # bytes behind a map: a kernel's vectors may read past its end
_LARGE = 1 << 19  # bytes; from here on memory lies in huge pages
_lock = threading.Lock()
_chunk: tuple[Tensor, int] = (torch.empty(0, dtype=torch.uint8), 0)  # what weights are put into, and how full it is


def huge_page_buffer(size: int) -> Tensor:
    """`size` bytes that begin with a huge page; uninitialised."""
    # Private: by the system's default, pages that processes might share are small.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, -(-size // HUGE) * HUGE + HUGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % HUGE :][:size]


def allocate(size: int, *, huge: bool = False) -> Tensor:
    """`size` bytes for maps and room behind them, from the start of a cache line; uninitialised.

    `huge`: in huge pages whatever the size; large sizes always are.
    """
    if huge or size >= _LARGE:
        return huge_page_buffer(size + _BEYOND)
    memory = torch.empty(size + _BEYOND + ALIGN, dtype=torch.uint8)
    return memory[-memory.data_ptr() % ALIGN :]


def pack_into_huge_pages(weights: Tensor) -> Tensor:
    """A copy of dense `weights` behind those packed before it; a chunk is freed once none of its weights is in use.

    MobileNetV1's weights in huge pages make it 3 % faster, V3-Small's 10 %, on a Zen 4 core.
    """
    size = weights.numel() * weights.element_size()
    memory = huge_page_buffer(size) if size > _CHUNK // 2 else _room(size)
    return memory.view(weights.dtype).view(weights.shape).copy_(weights)


def _room(size: int) -> Tensor:
    """The next `size` bytes of the chunk, or the first of a new one."""
    global _chunk
    with _lock:
        chunk, used = _chunk
        if used + size > chunk.numel():
            chunk, used = huge_page_buffer(_CHUNK), 0
        _chunk = chunk, -(-(used + size) // ALIGN) * ALIGN
    return chunk[used : used + size]
