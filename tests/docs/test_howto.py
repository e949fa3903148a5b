"""Every code block of the documentation is run, or, where that takes minutes, read by the command it would start."""

import contextlib
import doctest
import importlib
import inspect
import io
import itertools
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import typer

from docs.generate import ROOT
from leanconv import registry
from leanconv.cli.main import build, main
from leanconv.nn import get, parse
from leanconv.papers.reproduce import select
from leanconv.train.recipe import Recipe

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.md"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the output that is shown right below it (or nothing)."""

    language: str
    text: str
    shown: str | None


def blocks(page):
    """The code blocks of a page; a text block that follows another one at once, or after one line, is its output."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    return [
        Block(
            each[1],
            each[2],
            after[2] if after and after[1] == "text" and text[each.end() : after.start()].count("\n\n") <= 2 else None,
        )
        for each, after in zip(found, [*found[1:], None])
    ]


def in_language(page, language):
    return [block for block in blocks(page) if block.language == language]


def assert_shown(block, printed):
    """The output stands on the page, where `...` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(block.shown, printed, flags), f"{block.text}\nprinted\n{printed}"


def run_python(page, space):
    """Run the page's Python from top to bottom, as a reader would, and compare what it prints."""
    for block in in_language(page, "python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, page, "exec"), space)
        if block.shown is not None:
            assert_shown(block, out.getvalue())


def commands(page):
    """The lines of the page's shell blocks, as words."""
    return [shlex.split(line) for block in in_language(page, "sh") for line in block.text.splitlines()]


def mentioned(page):
    """The commands that stand in a sentence, `leanconv COMMAND ...`."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [shlex.split(each) for each in re.findall(r"`(leanconv [^`]+)`", text)]


@pytest.fixture
def shell(monkeypatch, capsys):
    def call(words):
        monkeypatch.setattr(sys, "argv", words)
        status = 0
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code
        printed = capsys.readouterr()
        assert not status, f"{shlex.join(words)}: {printed.err}"
        return printed.out

    return call


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= {"python", "sh", "text", "toml"}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_leanconv_would_take(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, *words in [*commands(page), *mentioned(page)]:
        assert name == "leanconv"
        command = typer.main.get_command(build(words[0])).commands[words[0]]
        context = command.make_context(words[0], words[1:])  # raises on an option or argument that it does not have
        given = context.params.get("to") or []  # `profile` takes several
        for text in [given] if isinstance(given, str) else given:
            parse(text)
        if words[0] == "reproduce":
            select(words[1])
        recipe = str(context.params.get("recipe") or "")
        if recipe and "/" not in recipe:  # else it is a run folder
            Recipe.read(recipe, with_teachers(context.params["words"] or []))


def with_teachers(words):
    """The words of a recipe, whose teachers' folders are there now."""
    for word in words:
        if word.startswith("teacher="):
            folder = Path(word.partition("=")[2])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.json").touch()
    return words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("operators/")])
def test_an_operators_page_runs(page, shell):
    run_python(page, {})
    first = commands(page)[0]
    assert inspect.getdoc(sys.modules[get(first[-1]).__module__]) in shell(first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_swap_a_model_runs(tmp_path, monkeypatch):
    for library in ("timm", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"the page uses {library}")
    monkeypatch.chdir(tmp_path)
    # A user's fit takes more steps; how near it comes is no matter here.
    monkeypatch.setattr("leanconv.convert.fit.whole.STEPS", (5, 5))
    monkeypatch.setattr("leanconv.convert.fit.fitting.STEPS", 5)
    space = {}
    run_python("swap_a_model.md", space)
    assert Path("lean.onnx").stat().st_size > 0
    assert len(type(space["mixed"]).load("plan.json")) == 14
    assert {row.engine for row in space["fast"].choices.rows} == {"eager", "folded", "channels_last"}


@pytest.fixture
def small(tiny_data, tmp_path, monkeypatch):
    """The page's words on a folder of 31 small images, with settings that take a second."""
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "masks"):
        folder = tmp_path / "photos" / kind
        folder.mkdir(parents=True)
        for path in tiny_data.glob(f"*/{kind}/*.png"):
            (folder / f"{path.parts[-3]}{path.stem}.png").write_bytes(path.read_bytes())
    (tmp_path / "photos/images/0001.jpg").write_bytes((tmp_path / "photos/images/train0.png").read_bytes())
    (tmp_path / "photos/masks/0001.png").write_bytes((tmp_path / "photos/masks/train0.png").read_bytes())

    def smaller(words):
        words = [re.sub(r"\bDIR\b", "photos", word) for word in words]
        if words[1] == "train":
            words += ["size=24", "batch=5", "epochs=0", "steps=4", "device=cpu", "threads=1"]
            words.append("model=leanconv:unet?base=4&levels=2&conv=depthwise_separable")
        return words + (["--budget", "0"] if words[1] == "report" else [])

    return smaller


@pytest.mark.slow
def test_train_your_own_runs(small, shell):
    for library in ("jinja2", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"the page uses {library}")
    page = "train_your_own.md"
    trained, transfer, planned, scored, _, _, _ = in_language(page, "sh")
    assert "pretrained=true" in transfer.text  # downloads: not run here
    assert planned.text.startswith("leanconv plan smp:Unet")
    for line in trained.text.splitlines():
        printed = shell(small(shlex.split(line)))
    assert_shown(trained, printed)
    for line in scored.text.splitlines():
        shell(small(shlex.split(line)))
    listed = next(block for block in in_language(page, "text") if block.text.startswith("found/"))
    assert sorted(listed.text.split()) == sorted(path.as_posix() for path in Path("found").iterdir())
    assert "runs/lean" in Path("report.html").read_text()


def test_the_classifier_on_the_page_trains(tmp_path, monkeypatch, shell):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for kind, (part, count) in itertools.product(
        ("scratch", "stain", "fine"), {"train": 8, "val": 2, "test": 2}.items()
    ):
        folder = tmp_path / "DIR" / part / kind
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 36), (index, 80, len(kind))).save(folder / f"{index}.png")
    block = in_language("train_your_own.md", "sh")[5]
    train, score = (shlex.split(line) for line in block.text.splitlines())
    train = [word for word in train if not word.startswith(("size=", "epochs="))]
    shell([*train, "size=32", "batch=4", "steps=2", "device=cpu", "threads=1"])
    assert_shown(block, shell(score))


def test_the_recipe_on_the_page_is_one(tmp_path):
    block, decides = in_language("train_your_own.md", "toml")
    path = tmp_path / "mine.toml"
    path.write_text(f"steps = 1\n{decides.text}")
    assert all(getattr(Recipe.read(path), key) == value for key, value in {"max_area": 200, "merge": 4}.items())
    path.write_text(block.text)
    recipe = Recipe.read(path)
    assert {field.name for field in fields(Recipe)} >= set(tomllib.loads(block.text))
    assert recipe.defect_crop == 0.5


@pytest.fixture
def lowrank(tmp_path, monkeypatch):
    """The operator of the page, as the file that a reader saves; forgotten again afterwards."""
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))
    (tmp_path / "lowrank.py").write_text(in_language("new_operator.md", "python")[0].text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lowrank"
    sys.modules.pop("lowrank", None)


def test_the_new_operator_is_one_and_keeps_the_contract(lowrank):
    space = {}
    for block in in_language("new_operator.md", "python")[1:]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, "new_operator.md", "exec"), space)
        if block.shown is not None:
            assert_shown(block, out.getvalue())
    contract = importlib.import_module("tests.nn.test_contract")
    held = 0
    for text in space["OPERATORS"]:
        name, options = parse(text)
        for key, spec in contract.SPECS.items():
            if get(name).why_not(spec, **options):
                contract.test_refusals_are_readable(text, key)
            else:
                held += sum(_holds(contract, test, (text, spec)) for test in vars(contract))
        contract.test_gradcheck(text)
        contract.test_meta_device_builds_without_memory(text)
        contract.test_a_sample_without_its_batch_gives_what_it_gives_in_one(text)
        contract.test_inputs_of_other_sizes_are_refused_in_words(text)
        contract.test_vmap_and_gradients_of_each_sample(text, last=True)
    contract.test_option_values_of_any_kind_are_taken_or_refused_in_words(lowrank)
    contract.test_signature_is_conv2ds(lowrank)
    assert held > 200


def _holds(contract, name, case):
    """Run a test of the contract that takes one operator on one layer; False for any other, or where it skips."""
    test = getattr(contract, name)
    if not name.startswith("test_") or list(inspect.signature(test).parameters) != ["case"] or "compile" in name:
        return False
    try:
        test(case)
    except pytest.skip.Exception:
        return False
    return True
