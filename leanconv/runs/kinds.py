"""Model references, `KIND:NAME?option=value&…`: parse them without running code, then build the model."""

import ast
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from leanconv import models
from leanconv.errors import BadInput, LeanconvError, UnknownName, UntrustedCode
from leanconv.extras import needs
from leanconv.registry import nearest
from leanconv.text import one_line

KINDS = (
    "leanconv:unet?base=32&conv=splconv(alpha=0.5), timm:resnet18, smp:Unet?encoder_name=resnet18, "
    "path/to/file.py:factory, or a run folder"
)
_CODE = re.compile(r"(?P<path>.+\.py):(?P<factory>\w+)", re.DOTALL)
_SCHEME = re.compile(r"(?P<kind>[A-Za-z][\w+-]*):(?P<name>.*)", re.DOTALL)
_NEXT_OPTION = re.compile(r"&(?=\s*[A-Za-z_]\w*\s*=)")  # an ampersand inside a value is no separator
_WORDS = {"true": True, "false": False, "none": None}
# Module that a user's file imported from its own folder -> that folder. Another folder's `layers` is another module.
_BESIDE: dict[str, Path] = {}


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `kind`: leanconv, timm, smp, code or path. `name`: the model, the file or the folder."""

    kind: str
    name: str
    options: dict[str, Any]
    factory: str = ""
    text: str = ""


def read(text: str, words: Iterable[str] = ()) -> Reference:
    """Parse a reference and the `key=value` words that follow it. The words override its query.

    Raises: BadInput for text that is no reference, UnknownName for an unknown kind.
    """
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise BadInput(f"{text!r} is no model reference; write {KINDS}")
    head, _, query = text.strip().partition("?")
    options = {**_options(_NEXT_OPTION.split(query) if query else []), **_options(words)}
    if os.path.isdir(head):  # unlike Path.is_dir, it returns False for a name that is too long
        return Reference("path", head, options, text=text)
    if code := _CODE.fullmatch(head):
        return Reference("code", code["path"], options, code["factory"], text)
    scheme = _SCHEME.fullmatch(head)
    if scheme is None or not scheme["name"]:
        return Reference("path", head, options, text=text)
    kind, name = scheme["kind"], scheme["name"]
    if kind not in _BUILDERS:
        raise UnknownName(f"{head!r}: unknown kind of model {kind!r}{nearest(kind, list(_BUILDERS))}; write {KINDS}")
    return Reference(kind, name, options, text=text)


def join(text: str, words: Iterable[str]) -> str:
    """Join a reference and its words: `leanconv:unet` and `base=32` become `leanconv:unet?base=32`."""
    parts = [word.strip() for word in words]
    _options(parts)
    return text + ("&" if "?" in text else "?") + "&".join(parts) if parts else text


def with_outputs(text: str, outputs: int) -> str:
    """The reference with so many outputs: one a class, of a segmentation network one a class and pixel.

    Text in which a number of outputs is said, or whose model is somebody's code or a run folder, stays as it is.
    """
    reference = read(text)
    if reference.kind == "leanconv":
        known = models.options_of(reference.name)
        option = next((name for name in ("out_channels", "num_classes") if name in known), "")
        default = known.get(option)
    else:
        option, default = {"timm": ("num_classes", None), "smp": ("classes", 1)}.get(reference.kind, ("", None))
    if not option or option in reference.options or outputs == default:
        return text
    return join(text, [f"{option}={outputs}"])


def value(text: str) -> Any:
    """Parse an option's value: a Python literal, `true`, `false`, `none`, or plain text. No code runs."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for text like "1if" Python warns before it raises
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def without(text: str, option: str) -> str:
    """The reference without one of its options: `leanconv:unet?base=16&conv=spconv` less `conv` has `base=16` left."""
    head, _, query = text.partition("?")
    parts = [part for part in _NEXT_OPTION.split(query) if part.partition("=")[0].strip() != option]
    return f"{head}?{'&'.join(parts)}" if query and parts else head


def _options(words: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier() or not text.strip():
            raise BadInput(f"{word[:80]!r} is no option; write key=value, like base=32")
        if key in found:
            raise BadInput(f"{key} is given twice; give it once")
        found[key] = value(text)
    return found


def build(reference: Reference, *, from_file: bool = False, trust_code: bool = False) -> nn.Module:
    """Build the model of a reference, in train mode, with fresh weights unless `pretrained=true`.

    Args:
        from_file: the reference comes from a file, not from the user. Code then needs `trust_code`, and nothing is
            downloaded, because the file's own weights follow.
    """
    if reference.kind == "code":
        if from_file and not trust_code:
            raise UntrustedCode(
                f"the run folder's model.json asks to run {reference.name}:{reference.factory}; read that file, and "
                "say --trust-code (or trust_code=True) if you trust it"
            )
        return _from_code(Path(reference.name), reference.factory, reference.options)
    if reference.kind not in _BUILDERS:
        raise BadInput(f"{reference.text!r} names no model that can be built; write {KINDS}")
    options = dict(reference.options)
    if from_file:
        options = {k: v for k, v in options.items() if k not in ("pretrained", "encoder_weights")}
    try:
        return _BUILDERS[reference.kind](reference.name, options)
    except (LeanconvError, KeyboardInterrupt):
        raise
    except Exception as error:  # a library may raise anything for an unknown option
        raise BadInput(f"{reference.text!r} cannot be built: {type(error).__name__}: {_line(error)}") from error


def _from_leanconv(name: str, options: dict[str, Any]) -> nn.Module:
    return models.build(name, **options)


def _from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    with needs("timm", "zoo"):
        import timm
    _needs_no_file(options, "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    if not timm.is_model(name):
        raise UnknownName(f"timm has no model {name!r}{nearest(name, timm.list_models())}; see timm.list_models()")
    return _module(timm.create_model(name, pretrained=_flag(options), **options), f"timm:{name}")


def _from_smp(name: str, options: dict[str, Any]) -> nn.Module:
    with needs("segmentation-models-pytorch", "zoo"):
        import segmentation_models_pytorch as smp
    known = {cls.__name__: cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    match = next((cls for each, cls in known.items() if each.lower() == name.lower()), None)
    if match is None:
        raise UnknownName(f"smp has no model {name!r}{nearest(name, list(known))}; known: {', '.join(known)}")
    encoder = str(options.get("encoder_name", ""))
    if ":" in encoder or "/" in encoder:
        raise BadInput(f"smp: encoder_name={encoder!r}: a plain name; nothing is fetched by address")
    asked = options.get("encoder_weights")
    if _flag(options):
        options.setdefault("encoder_weights", "imagenet")
    elif asked is not None:
        raise BadInput(f"smp: encoder_weights={asked!r} downloads weights; pass pretrained=true as well")
    return _module(match(**{"encoder_weights": None, **options}), f"smp:{name}")


_BUILDERS = {"leanconv": _from_leanconv, "timm": _from_timm, "smp": _from_smp}


def _from_code(path: Path, factory: str, options: dict[str, Any]) -> nn.Module:
    """Run a Python file that the user named, and call its factory. The file may import its neighbours."""
    where = f"{path}:{factory}"
    if not os.path.isfile(path):
        raise BadInput(f"{one_line(where, most=300)}: there is no file {one_line(path, most=300)}")
    name = "leanconv_user_" + sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{where}: Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        with _neighbours(path.resolve().parent):
            spec.loader.exec_module(module)
            public = [key for key in vars(module) if not key.startswith("_")]
            if not hasattr(module, factory):
                raise BadInput(f"{where}: the file defines no {factory!r}{nearest(factory, public)}")
            found = getattr(module, factory)
            if isinstance(found, nn.Module) and not options:
                return found
            return _module(found(**options), where)
    except LeanconvError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{where}: your code raised {type(error).__name__}: {_line(error)}") from error


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Make the files of `folder` importable, even if another folder's file of the same name was imported before."""
    for name, home in list(_BESIDE.items()):
        top = name.split(".")[0]
        if home != folder and ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
            sys.modules.pop(name, None)
            del _BESIDE[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            top = name.split(".")[0]
            file = getattr(sys.modules.get(top), "__file__", None)
            if file and Path(file).parent in (folder, folder / top):
                _BESIDE[name] = folder


def _flag(options: dict[str, Any]) -> bool:
    """Pop `pretrained` from the options. Raises BadInput unless it is true or false: the text "no" would download."""
    pretrained = options.pop("pretrained", False)
    if not isinstance(pretrained, bool):
        raise BadInput(f"pretrained={pretrained!r}: true or false")
    return pretrained


def _needs_no_file(options: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in options:
            raise BadInput(f"{name}= is not taken: weights come from a run folder, or from pretrained=true")


def _module(built: Any, where: str) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise BadInput(f"{where}: gave {type(built).__name__}, not an nn.Module")
    return built


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
