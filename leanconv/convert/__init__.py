"""Convert: say what would be swapped (`plan`), swap it (`apply_`), and fold what eval mode lets be folded (`fold_`)."""

from leanconv.convert.applied import Applied
from leanconv.convert.apply import apply_
from leanconv.convert.fold import FoldReport, fold_
from leanconv.convert.plan import plan
from leanconv.convert.swap import Plan, Swap

__all__ = ["Applied", "FoldReport", "Plan", "Swap", "apply_", "fold_", "plan"]
