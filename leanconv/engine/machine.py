"""Diagnose this machine: what it can run, and what to install for the rest."""

import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from leanconv.extras import installed
from leanconv.kernels import backend, cpuinfo, this_cpu, usable_cores
from leanconv.measure import describe
from leanconv.table import table
from leanconv.version import __version__

# The extras of pyproject.toml with their purpose, and distribution -> module.
EXTRAS = {
    "cpu": ("the fused kernels of optimize on a CPU", {"halide": "halide"}),
    "train": (
        "train, eval, predict",
        {"torchvision": "torchvision", "accelerate": "accelerate", "scipy": "scipy",
         "tensorboard": "tensorboard", "pyarrow": "pyarrow", "webdataset": "webdataset", "pillow": "PIL"},
    ),
    "export": (
        "export; ONNX Runtime and OpenVINO as engines",
        {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime",
         "openvino": "openvino", "nncf": "nncf"},
    ),
    "zoo": ("timm: and smp: models", {"timm": "timm", "segmentation-models-pytorch": "segmentation_models_pytorch"}),
    "search": ("search, lean", {"scipy": "scipy"}),
    "report": ("report", {"plotly": "plotly", "matplotlib": "matplotlib", "jinja2": "jinja2", "pillow": "PIL"}),
}  # fmt: skip
# Instruction sets that decide which kernels run, in the spelling of /proc/cpuinfo (x86, Arm).
FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Item:
    """One library or tool: its purpose, and the command that installs it."""

    name: str
    found: str  # version or path; "" if it is missing
    purpose: str
    install: str

    @property
    def ok(self) -> bool:
        return bool(self.found)


@dataclass(frozen=True)
class Diagnosis:
    """The machine's facts and its items."""

    machine: dict[str, Any]
    items: tuple[Item, ...]

    @property
    def missing(self) -> list[str]:
        """The commands that install all missing items, without duplicates."""
        return list(dict.fromkeys(item.install for item in self.items if not item.ok and item.install))

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "items": [asdict(item) | {"ok": item.ok} for item in self.items],
            "missing": self.missing,
        }

    def __str__(self) -> str:
        facts = [[name.replace("_", " "), _words(value)] for name, value in self.machine.items()]
        rows = [[item.name, item.found or "missing", item.purpose] for item in self.items]
        text = f"{table(['machine', ''], facts)}\n\n{table(['needs', 'found', 'for'], rows)}"
        if not self.missing:
            return f"{text}\n\neverything is installed"
        return "\n".join([text, "", "to install the rest:", *(f"  {command}" for command in self.missing)])


def diagnose() -> Diagnosis:
    """Look at this machine: CPU, threads, accelerators, compilers, and the libraries of every extra."""
    facts = describe("cpu")
    machine = {
        "cpu": facts["name"], "features": [name for name in FEATURES if name in cpuinfo()[1]],
        "caches": _caches(), "torch_isa": torch.backends.cpu.get_cpu_capability(), "cores": len(usable_cores()),
        "threads": facts["threads"], "system": f"{facts['system']} {platform.machine()}", "python": facts["python"],
        "leanconv": __version__, "torch": facts["torch"], "gpus": _gpus(),
        "kernels": "{}: {}".format(*backend().status()), **backend().facts(),
    }  # fmt: skip
    return Diagnosis(machine, tuple(_libraries() + _tools()))


def _libraries() -> list[Item]:
    return [
        Item(f"{name} [{extra}]", _version(name, module), purpose, f"pip install 'leanconv[{extra}]'")
        for extra, (purpose, libraries) in EXTRAS.items()
        for name, module in libraries.items()
    ]


def _tools() -> list[Item]:
    compiler, c_compiler = _which("g++", "c++", "clang++"), _which("cc", "gcc", "clang")
    browser = _which(*BROWSERS)
    triton = _version("triton", "triton")
    return [
        Item("C++ compiler", compiler, "torch.compile on the CPU", "apt install g++"),
        Item("C compiler", c_compiler, "keeping compiled kernels, several threads in them", "apt install gcc"),
        Item("triton", triton, "torch.compile on a GPU", "pip install triton" if platform.system() == "Linux" else ""),
        Item("browser", browser, "the tests of the HTML report", "apt install chromium"),
    ]


def _version(distribution: str, module: str) -> str:
    """Return the installed version, or "" if the module cannot be found."""
    if not installed(module):
        return ""
    try:
        return version(distribution)
    except PackageNotFoundError:  # a build from source without metadata
        return "of unknown version"


def _which(*names: str) -> str:
    return next((path for path in map(shutil.which, names) if path), "")


def _caches() -> str:
    """Return the data caches of a core, for example "32 KiB, 1 MiB, 32 MiB"."""
    cpu = this_cpu()
    sizes = (size for size in (cpu.l1, cpu.l2, cpu.l3) if size)
    return ", ".join(f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB" for size in sizes)


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _words(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
