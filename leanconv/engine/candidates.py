"""The engines that `optimize` tries, in the order it tries them: quick to prepare first.

A new engine is one file that makes a `Candidate`, and its line here.
"""

from leanconv.engine.candidate import Candidate
from leanconv.engine.compiled import COMPILE
from leanconv.engine.eager import CHANNELS_LAST, FOLDED
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.runtimes import ONNXRUNTIME, OPENVINO
from leanconv.errors import UnknownName
from leanconv.registry import nearest

GIVEN = "eager"  # the model as it was given: always tried, whatever `engines` says
CANDIDATES = {each.name: each for each in (FOLDED, CHANNELS_LAST, FUSED, OPENVINO, ONNXRUNTIME, COMPILE)}


def chosen(engines: object) -> list[Candidate]:
    """The candidates that `engines` names (None: all). Raises UnknownName with the known ones."""
    if engines is None:
        return list(CANDIDATES.values())
    words = [engines] if isinstance(engines, str) else list(engines)  # type: ignore[call-overload]
    known = [GIVEN, *CANDIDATES]
    for word in words:
        if word not in known:
            raise UnknownName(f"unknown engine {word!r}{nearest(str(word), known)}; known: {', '.join(known)}")
    return [each for each in CANDIDATES.values() if each.name in words]
