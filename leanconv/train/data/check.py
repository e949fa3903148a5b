"""Check every file before a training begins, and report all faults together."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from leanconv.errors import BadFiles, BadInput
from leanconv.progress import tracked

# The most pixels to decode: 4,000 photographs of 12 megapixels, some minutes. A count instead of a time limit: all
# processes of a run then decode the same images.
MOST_PIXELS = 5 * 10**10
_BLOCK = 256  # images between two checks for Ctrl-C, with several threads


class FileCheck:
    """Checks the `count` images of a split: first all headers, then the pixels.

    Attributes:
        sizes: image -> height and width, of those whose header is good.
    """

    def __init__(self, count: int, *, progress: bool) -> None:
        self.count, self.progress = count, progress
        self.sizes: dict[int, tuple[int, int]] = {}
        self._faults: dict[int, str] = {}
        self._decoded = 0

    def read_headers(self, size: Callable[[int], tuple[int, int]]) -> None:
        """`size` gives height and width of an image by its header, or raises BadInput."""
        for index in tracked(range(self.count), "reading headers", progress=self.progress, count=self.count):
            try:
                self.sizes[index] = size(index)
            except BadInput as error:
                self._faults[index] = str(error)

    def decode(self, decode: Callable[[int], object]) -> None:
        """`decode` reads an image's pixels, or raises BadInput. In a huge set it reads every n-th image only."""
        total = sum(height * width for height, width in self.sizes.values())
        chosen = list(self.sizes)[:: -(-total // MOST_PIXELS) or 1]

        def read(index: int) -> None:
            try:
                decode(index)
            except BadInput as error:
                self._faults[index] = str(error)

        blocks = [chosen[start : start + _BLOCK] for start in range(0, len(chosen), _BLOCK)]
        # Decoders release the GIL: two cores take half the time.
        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), 8))) as pool:
            each = (index for block in blocks for index in [*zip(block, pool.map(read, block), strict=True)])
            for _ in tracked(each, "reading images", progress=self.progress, count=len(chosen)):
                self._decoded += 1

    def finish(self) -> str:
        """A remark on images that were not decoded. Raises BadInput, or BadFiles for several unusable images."""
        refuse([self._faults[index] for index in sorted(self._faults)], self.count)
        if self._decoded == self.count:
            return ""
        return (
            f"{self._decoded:,} of {self.count:,} images were decoded beforehand, of the others the headers were read"
        )


def refuse(faults: Sequence[str], count: int) -> None:
    """Raise BadInput if there are faults among `count` images."""
    if len(faults) == 1:
        raise BadInput(faults[0])
    if faults:
        raise BadFiles(faults, count)
