"""The whole way: dense score, plan, fit, recovery, speed, export. Every stage is kept, and a killed way goes on."""

import shlex
import time
import warnings
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.convert import Plan
from leanconv.copies import copied
from leanconv.errors import BadCheckpoint, BadInput, Interrupted
from leanconv.files import check_own, write_atomic
from leanconv.measure.counting.count import count
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.report import Report
from leanconv.planner.lean.stages import Stages
from leanconv.planner.lean.state import State
from leanconv.planner.lean.subject import Subject, check_finite
from leanconv.runs import RunFolder
from leanconv.runs.lock import writing
from leanconv.train.progress import Reporter

# What becomes of the accepted version's run folder; model.json last, for a folder without it is no run.
_HANDED = ("model.safetensors", "recipe.toml", "history.csv", "metrics.json", "model.json")
_NEEDED = ("model.safetensors", "model.json")


def make_lean(asked: Asked, *, stages: Stages | None = None, trust_code: bool = False, progress: bool = True) -> Report:
    """Go the whole way, or go on where the folder `asked.out` stands.

    Args:
        stages: the work itself; tests replace parts of it.
        trust_code: run the Python file that the model reference or a run folder names.
        progress: show lines and bars on standard error.
    Returns: the report. Where its `refusal` is empty, `asked.out` is the lean network's run folder.
    Raises: BadInput for arguments, data or a folder that cannot be used, and for a budget that nothing meets;
        UntrustedCode for a Python file without `trust_code`; Interrupted after Ctrl-C: the finished stages are kept.
    """
    threads = torch.get_num_threads()
    try:
        if asked.threads:
            torch.set_num_threads(asked.threads)
        with writing(Path(asked.out), "leanconv lean"):
            return _Way(asked, stages or Stages(), trust_code, progress).go()
    finally:
        torch.set_num_threads(threads)


class _Way:
    """One way through the stages; start reading at `go`."""

    def __init__(self, asked: Asked, stages: Stages, trust_code: bool, progress: bool) -> None:
        self.asked, self.work, self.progress = asked, stages, progress
        self.state = State.begin(asked)
        self.out = self.state.folder
        self.tell = Reporter(active=True, visible=progress)
        self.again = f"leanconv lean {shlex.quote(str(self.out))} --resume" + " --trust-code" * trust_code
        if asked.export:
            check_own(Path(asked.export), overwrite=False)
        self.subject: Subject = stages.open(asked, self.state.place("dense"), self.tell, trust_code=trust_code)
        check_finite(self.subject.network, self.subject.run.path)
        self.trust_code = trust_code

    def go(self) -> Report:
        """Every stage that is not done yet, in order; stops where the lean network is no gain."""
        dense = self._stage("dense", self._dense)
        if dense["weights"] != _fingerprint(self.subject.run):
            raise BadInput(
                f"{self.subject.run.path} has other weights than when {self.out} began: choose another --out"
            )
        self._stage("plan", self._plan)
        if not self._report().refusal:
            self._stage("fit", self._fit)
            if self.asked.epochs:  # nobody should wait for the training of a network that is slower
                self._stage("look", lambda: self._race("fit", None))
        if not self._report().refusal and self.asked.epochs:
            self._stage("recover", self._recover)
        report = self._report()
        if not report.refusal:
            self._stage("speed", lambda: self._race(report.best, self._engines()))
        report = self._report()
        if not report.refusal and self.asked.export:
            self._stage("export", lambda: self._export(report.best))
        return self._hand_over(self._report())

    def _stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the stage found: kept, or now."""
        if name in self.state.stages:
            return self.state.stages[name]
        start = time.perf_counter()
        try:
            found = work()
        except KeyboardInterrupt:
            done = ", ".join(self.state.stages) or "nothing"
            raise Interrupted(f"stopped during {name}; done and kept: {done}; go on with: {self.again}") from None
        found = self.state.keep(name, found, time.perf_counter() - start)
        self.tell.say(f"{name:8} {_LINES[name](found)}; {found['seconds']:.0f} s")
        return found

    def _dense(self) -> dict[str, Any]:
        subject = self.subject
        score = subject.score(subject.network)
        facts = {"measure": subject.measure, "judged": subject.judged, "weights": _fingerprint(subject.run)}
        return {"score": score.value, **facts, **self._size(subject.run, subject.network)}

    def _plan(self) -> dict[str, Any]:
        plan, known = self.work.plan(self.subject, self.asked, self.out / "search.json")
        plan.save(self.out / "plan.json")
        operators = Counter(str(swap.to) for swap in plan.swapped)
        counts = {"swapped": len(plan.swapped), "kept": len(plan.kept), "operators": dict(operators.most_common())}
        return {**counts, **known}

    def _fit(self) -> dict[str, Any]:
        plan, lean = Plan.load(self.out / "plan.json"), copied(self.subject.network)
        applied = self.work.fit(lean, plan, self.subject)
        check_finite(lean, "the fitted network")
        score, folder = self.subject.score(lean.eval()), self._folder("fit")
        self.subject.write(folder, lean, plan, score)
        return {"score": score.value, **self._size(folder, lean), **applied}

    def _recover(self) -> dict[str, Any]:
        folder = self._folder("recover")
        error = self.state.stages["fit"].get("output_error")
        score = self.subject.recover(self._folder("fit"), folder.path, self.again, error)
        return {"score": score.value, **self._size(folder, self._load("recover"))}

    def _race(self, version: str, engines: dict[str, str] | None) -> dict[str, Any]:
        """Time the dense network and a version in turns, each on its best engine."""
        networks = copied(self.subject.network), self._load(version)
        return self.work.race(
            *networks, self.subject.inputs, budget_s=self.asked.budget_s, engines=engines, progress=self.progress
        )

    def _engines(self) -> dict[str, str] | None:
        """The winners of the first look: the recovered weights run on the same engines."""
        look = self.state.stages.get("look")
        return {key: look[key]["engine"] for key in ("dense", "lean")} if look else None

    def _export(self, version: str) -> dict[str, Any]:
        path = Path(self.asked.export)
        exported = self.subject.export(self._folder(version), path)
        size = sum(each.stat().st_size for each in exported.files if each.suffix != ".py")
        worst = max((each.relative for each in exported.verified), default=0.0)
        proof = f"the same as the model at {len(exported.verified)} sizes (largest error {worst:.1e})"
        if exported.metrics:
            proof += "; " + ", ".join(f"{name} {file:.4g}" for name, (_, file) in exported.metrics.items())
        return {"path": str(path), "format": exported.format, "bytes": size, "proof": proof}

    def _hand_over(self, report: Report) -> Report:
        """Make OUT the run folder of the accepted version; of a refused one, no run folder."""
        source = self._folder(report.best).path
        if not report.refusal and (gone := [name for name in _NEEDED if not (source / name).is_file()]):
            raise BadCheckpoint(
                f"{source} has no {' and no '.join(gone)}, and {self.state.path} says that the stage is done: put the "
                "folder back, or choose another --out"
            )
        if report.refusal:
            for name in _HANDED:
                (self.out / name).unlink(missing_ok=True)
        else:
            for name in _HANDED:
                if (source / name).is_file():
                    write_atomic(self.out / name, (source / name).read_bytes())
        self.state.write(report.to_dict())
        return report

    def _report(self) -> Report:
        found = self.state.stages
        facts = {key: str(found["dense"][key]) for key in ("measure", "judged")}
        facts["title"] = f"{self.asked.model} made lean: {self.out}"
        return Report(str(self.out), self.asked.to_dict(), facts, found)

    def _size(self, folder: RunFolder, network: nn.Module) -> dict[str, int]:
        """Parameters, MACs on the timed input, bytes of the weights file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operations without a rule: `leanconv profile` lists them
            macs = count(network, self.subject.inputs).flops
        params = sum(p.numel() for p in network.parameters())
        return {"params": params, "macs": int(macs), "bytes": folder.weights.stat().st_size}

    def _folder(self, version: str) -> RunFolder:
        return RunFolder(self.state.place(version))

    def _load(self, version: str) -> nn.Module:
        return self._folder(version).load_model(trust_code=self.trust_code)


def _fingerprint(run: RunFolder) -> str:
    return sha256(run.weights.read_bytes()).hexdigest()[:16]


def _score_line(found: dict[str, Any]) -> str:
    return f"score {found['score']:.4f}"


def _race_line(found: dict[str, Any]) -> str:
    ratio = found["ratio"]
    return f"{ratio['middle']:.2f}x the dense one's speed ({ratio['low']:.2f} to {ratio['high']:.2f})"


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "dense": _score_line,
    "plan": lambda found: f"{found['swapped']} layers change, {found['kept']} stay",
    "fit": _score_line,
    "look": _race_line,
    "recover": _score_line,
    "speed": _race_line,
    "export": lambda found: f"{found['path']}",
}
