"""Errors name the options of the command line as they were typed, not the arguments of Python's functions."""

from importlib import import_module

import pytest

from leanconv.cli.main import COMMANDS
from leanconv.cli.wording import as_typed, options_of

OPTIONS = {
    "max_loss": "--max-loss",
    "budget": "--budget",
    "budget_s": "--budget",
    "side": "--side",
    "out": "--out",
    "trust_code": "--trust-code",
}


@pytest.mark.parametrize(
    ("text", "typed", "said"),
    [
        ("max_loss=0.0: must be above 0", ["--max-loss", "0"], "--max-loss 0: must be above 0"),
        ("max_loss=0.0: must be above 0", ["--max-loss=0e3"], "--max-loss 0e3: must be above 0"),
        ("budget_s=-1.0: must be more", ["--budget", "-1"], "--budget -1: must be more"),
        ("allow more with max_loss, or not", [], "allow more with --max-loss, or not"),
        ("max_loss=0.25: too little", ["--max-loss", "1"], "--max-loss 0.25: too little"),
        ("DIR?side=128 has no side", ["--side", "128"], "DIR?side=128 has no side"),
        ("say out=another/folder", ["--out", "x"], "say out=another/folder"),
        (
            "it runs code: say --trust-code (or trust_code=True) to trust it",
            [],
            "it runs code: say --trust-code to trust it",
        ),
        ("colours, and side=128 is for greys", [], "colours, and side=128 is for greys"),
        ("side=128 is for 8 bits", ["--data", "DIR?side=128", "--side", "96"], "side=128 is for 8 bits"),
        ("side=96: too small", ["--data", "DIR?side=128", "--side", "96"], "--side 96: too small"),
        ("side='a b': no number", ["--side", "a b"], "--side a b: no number"),
    ],
)
def test_words(text, typed, said):
    assert as_typed(text, OPTIONS, typed) == said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_knows_its_options(command):
    options = options_of(import_module(f"leanconv.cli.{command}").command)
    assert options["json"] == "--json"
    assert all(option == f"--{name.replace('_', '-')}" for name, option in options.items() if not name.endswith("_s"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optimize", "leanconv:unet?base=2&levels=2", "--input", "1,3,16,16", "--budget", "0"), "error: --budget 0: "),
        (("predict", "{run}", "{images}", "--threshold", "2", "--out", "{run}/o"), "error: --threshold 2: a number"),
        (("eval", "{run}", "--threshold", "1.5"), "error: --threshold 1.5: a number"),
        (("optimize", "{run}", "--input", "1,3,16,16", "--int8", "--max-loss", "0"), "error: --max-loss 0: must be"),
    ],
)
def test_errors_of_the_command_line(words, said, leanconv, run_of_masks):
    run, images = run_of_masks
    code, _, err = leanconv(*[word.format(run=run, images=images) for word in words])
    assert code == 1
    assert said in err, err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("int8", "'--dtype': 'int8' is not one of 'float32', 'bfloat16'; did you mean --int8?"),
        ("float16", "'--dtype': 'float16' is not one of 'float32', 'bfloat16'."),
    ],
)
def test_a_value_that_names_another_option(value, said, leanconv):
    code, _, err = leanconv("optimize", "timm:resnet18", "--dtype", value)
    assert code == 2
    assert err.strip().endswith(f"Invalid value for {said}")
