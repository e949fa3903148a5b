"""What each stage must have found: the keys and types of its entry in lean.json, checked before any of it is used."""

from collections.abc import Callable
from typing import Any

_LARGEST = 1e18  # no figure of ours is larger; infinity and NaN are not smaller


def order(*, trains: bool) -> tuple[str, ...]:
    """The stages in their order. Without training there is no recovery, and no look before it."""
    return tuple(name for name in FIELDS if trains or name not in ("look", "recover"))


def fault(stage: str, found: Any) -> str:
    """What is wrong in a stage's entry, as `dense.score`; empty where it is as we write it."""
    return _fault({"seconds": _is_size, **FIELDS[stage]}, found, stage)


def _fault(fields: dict[str, Any], found: Any, where: str) -> str:
    if not isinstance(found, dict):
        return where
    for key, check in fields.items():
        value = found.get(key)
        if isinstance(check, dict):
            if inside := _fault(check, value, f"{where}.{key}"):
                return inside
        elif not check(value):
            return f"{where}.{key}"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_text(value: Any) -> bool:
    return type(value) is str


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


_SIZES: dict[str, Callable[[Any], bool]] = dict.fromkeys(("params", "macs", "bytes"), _is_count)
_TIMED = {"engine": _is_text, "median_ms": _is_size, "rounds": _is_count}
_RACE = {
    "dense": _TIMED,
    "lean": _TIMED,
    "ratio": dict.fromkeys(("low", "middle", "high"), _is_size),
    "where": _is_text,
    "threads": _is_count,
}
# In their order. A stage's files lie in OUT/stages/NAME, the search's plan in OUT/plan.json.
FIELDS: dict[str, dict[str, Any]] = {
    "dense": {"score": _is_number, "measure": _is_text, "judged": _is_text, "weights": _is_text, **_SIZES},
    "plan": {"swapped": _is_count, "kept": _is_count, "operators": _are_counts},
    "fit": {"score": _is_number, **_SIZES},
    "look": _RACE,
    "recover": {"score": _is_number, **_SIZES},
    "speed": _RACE,
    "export": {"path": _is_text, "format": _is_text, "bytes": _is_count, "proof": _is_text},
}
