"""The errors a user can meet. Each message says what, which value, and what to do, in one line."""


class LeanconvError(Exception):
    """The parent of every error that a caller or a file can cause; anything else is a bug of ours."""


class UnsupportedConv(LeanconvError, ValueError):
    """An operator cannot stand for this convolution; the message names the value and what to type instead."""


class UnknownName(LeanconvError, ValueError):
    """A name (operator, option, recipe key, model) that nobody registered; the message lists or suggests known ones."""


class BadInput(LeanconvError, ValueError):
    """A value or a file that cannot be used as it is: an image, a mask, a recipe, a shape, an argument."""


class BadCheckpoint(LeanconvError, RuntimeError):
    """A run folder or a weight file that is damaged, of another model, or not safetensors at all."""


class UntrustedCode(LeanconvError, RuntimeError):
    """A file asks to run somebody's Python code; say `--trust-code` (or `trust_code=True`) if you trust it."""


class MissingExtra(LeanconvError, ImportError):
    """An optional library is not installed; the message says what to install."""


class ExportMismatch(LeanconvError, RuntimeError):
    """The exported file does not compute what the model computes; nothing was left behind."""


class Diverged(LeanconvError, RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class Interrupted(LeanconvError, RuntimeError):
    """The user stopped a run; the message says where it was saved and how to resume."""


def missing_extra(library: str, extra: str) -> MissingExtra:
    """The error for a library that is not there: `raise missing_extra("openvino", "export") from error`."""
    return MissingExtra(f"{library} is not installed: pip install 'leanconv[{extra}]'")
