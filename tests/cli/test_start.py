"""What a command loads before its work begins: a typo loads no PyTorch, and prediction what it calls alone."""

import subprocess
import sys

import pytest

# The rooms of leanconv that predict and eval call. Engines, kernels, exports and swaps wait until one is needed.
ROOMS = {
    "agreement", "cli", "copies", "cost", "errors", "extras", "files", "kernels", "lazy", "measure", "models", "nn",
    "ops", "probes", "progress", "recipes", "registry", "running", "runs", "serving", "spec", "table", "text", "train",
    "version",
}  # fmt: skip
# Of these rooms the description of a device alone.
LEAVES = {
    "kernels": {"cpu", "cpu.tuning", "cpu.tuning.instructions"},
    "measure": {"device"},
    "serving": {"kept", "rule", "served", "shape"},
}
NOT_NEEDED = {
    "accelerate", "halide", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino", "pandas", "pyarrow", "sympy",
    "tensorboard", "torch._dynamo", "torch._inductor", "torch.utils.flop_counter", "torchmetrics", "torchvision",
    "triton", "rich.progress",
}  # fmt: skip
# Of leanconv, in a run without swaps: 146 when this was written, 355 before the engines waited.
MOST_OWN = 160


def loaded(code, *words):
    """The modules of a new process that runs the command line, and the command's exit status."""
    script = (
        "import sys\nfrom leanconv.cli.main import main\n"
        f"sys.argv = ['leanconv', *{[str(word) for word in words]!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    status, *modules = done.stdout.splitlines()[-1].split()
    assert int(status) == code, done.stderr
    return modules


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["predit"]),
        (2, ["predict", "run", "--treshold", "0.5"]),
        (2, ["predict", "run", "a.png", "--engine", "fusd"]),
        (2, ["predict", "run"]),
        (1, ["predict", "norun", "a.png"]),
        (1, ["eval", "norun"]),
    ],
)
def test_a_typo_loads_no_pytorch(code, words):
    assert "torch" not in loaded(code, *words)


def test_images_that_are_not_there_load_no_pytorch(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    assert "torch" not in loaded(1, "predict", tmp_path, tmp_path / "none.png", tmp_path / "no folder")


def test_a_watched_folder_that_is_not_there_loads_no_pytorch(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    assert "torch" not in loaded(1, "predict", tmp_path, "--watch", tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_prediction_loads_what_it_calls(command, run_of_masks, tmp_path):
    run, images = run_of_masks
    words = ["predict", run, images, "--out", tmp_path / "o"] if command == "predict" else ["eval", run]
    modules = loaded(0, *words)
    own = [name.split(".") for name in modules if name.startswith("leanconv.")]
    assert {name[1] for name in own} <= ROOMS
    for room, leaves in LEAVES.items():
        assert {".".join(name[2:]) for name in own if name[1] == room and name[2:]} <= leaves, room
    assert len(own) <= MOST_OWN
    assert not NOT_NEEDED & set(modules)
