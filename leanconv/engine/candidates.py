"""The list of engines that `optimize` tries, those with the shortest preparation first.

To add an engine, define a `Candidate` in its own file and list it here.
"""

from leanconv.engine.candidate import Candidate
from leanconv.engine.compiled import COMPILE
from leanconv.engine.eager import CHANNELS_LAST, FOLDED
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.runtimes import ONNXRUNTIME, OPENVINO
from leanconv.errors import UnknownName
from leanconv.registry import nearest

EAGER = "eager"  # the given model itself: always tried, whatever `engines` says
CANDIDATES = {each.name: each for each in (FOLDED, CHANNELS_LAST, FUSED, OPENVINO, ONNXRUNTIME, COMPILE)}


def chosen(engines: object) -> list[Candidate]:
    """Return the candidates that `engines` names (None: all). Raises UnknownName, which lists the known names."""
    if engines is None:
        return list(CANDIDATES.values())
    words = [engines] if isinstance(engines, str) else list(engines)  # type: ignore[call-overload]
    known = [EAGER, *CANDIDATES]
    for word in words:
        if word not in known:
            raise UnknownName(f"unknown engine {word!r}{nearest(str(word), known)}; known: {', '.join(known)}")
    return [each for each in CANDIDATES.values() if each.name in words]
