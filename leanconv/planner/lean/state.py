"""lean.json: what was asked in a folder, and the result of every stage that is done."""

import os
from pathlib import Path
from typing import Any, Self

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import LOCK, read_json, write_json
from leanconv.files.drafts import PREFIX
from leanconv.planner.lean.asked import Asked
from leanconv.planner.lean.found import fault, order
from leanconv.planner.lean.report import undecided
from leanconv.train.data.image_reader import listing
from leanconv.version import __version__

FORMAT = 1
NAME = "lean.json"
STAGES = order(trains=True)


class State:
    """The file lean.json of a folder.

    Attributes:
        folder: OUT.
        asked: the arguments.
        stages: name -> what it found, of the stages that are done.
    """

    def __init__(self, folder: Path, asked: Asked, stages: dict[str, dict[str, Any]]) -> None:
        self.folder, self.asked, self.stages = folder, asked, stages
        self.path = folder / NAME

    @classmethod
    def begin(cls, asked: Asked) -> Self:
        """The state of the folder `asked.out`: a new one, or the one that goes on. Nothing is written.

        Raises: BadInput for a folder that holds anything else, and for other arguments than it was started with.
        """
        folder = Path(asked.out)
        if not (folder / NAME).is_file():
            if there := foreign(folder):
                raise BadInput(
                    f"{folder} holds {listing(there)} and no {NAME}, so `leanconv lean` did not begin it: "
                    "give --out a new folder"
                )
            return cls(folder, asked, {})
        before = cls.read(folder)
        if changed := asked.differs(before.asked):
            raise BadInput(
                f"{folder} was started with {' '.join(changed)}: go on with the same "
                f"(leanconv lean {folder} --resume), or choose another --out"
            )
        if (before.asked.max_loss, before.asked.export) != (asked.max_loss, asked.export):
            before.stages.pop("export", None)
        latest = "speed" if "speed" in before.stages else "look"
        if latest in before.stages and undecided(before.stages[latest]):
            del before.stages[latest]  # it is measured again: the machine may be quiet now
        return cls(folder, asked, before.stages)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The state of a folder. Raises BadInput where nothing was begun, BadCheckpoint for a damaged file."""
        path = Path(folder) / NAME
        if not path.is_file():
            raise BadInput(f"{folder} has no {NAME}: there is nothing to go on with; leave out --resume")
        try:
            stored = read_json(path)
        except BadInput as error:
            raise BadCheckpoint(str(error)) from error
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            found = stored.get("format") if isinstance(stored, dict) else type(stored).__name__
            raise BadCheckpoint(f"{path}: has format {str(found)[:40]}, this version reads {FORMAT}")
        stages = stored.get("stages")
        if not isinstance(stages, dict) or not set(stages) <= set(STAGES):
            raise BadCheckpoint(f"{path}: its stages are none of {', '.join(STAGES)}")
        asked = Asked.read(stored.get("asked"), path)
        due = order(trains=asked.epochs > 0)[: len(stages)]
        if set(stages) != set(due):
            raise BadCheckpoint(
                f"{path}: has the stages {', '.join(stages)}, which cannot be, as each needs those before it; "
                "choose another --out"
            )
        if wrong := next(filter(None, (fault(name, stages[name]) for name in due)), ""):
            raise BadCheckpoint(f"{path}: {wrong} is missing or no value of it; choose another --out")
        return cls(Path(folder), asked, stages)

    def keep(self, stage: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Write down what a stage found, at once and whole."""
        self.stages[stage] = {"seconds": round(seconds, 3), **found}
        self.write()
        return self.stages[stage]

    def write(self, report: dict[str, Any] | None = None) -> Path:
        """Write lean.json; `report`: the final figures, once they are known."""
        ordered = {name: self.stages[name] for name in STAGES if name in self.stages}
        content = {"format": FORMAT, "leanconv": __version__, "asked": self.asked.to_dict(), "stages": ordered}
        return write_json(self.path, content | ({"report": report} if report is not None else {}))

    def place(self, stage: str) -> Path:
        """The folder of a stage's files."""
        return self.folder / "stages" / stage


def foreign(folder: Path) -> list[str]:
    """The names in a folder that are no lock and no draft of ours; empty where there is no folder."""
    if not os.path.lexists(folder):
        return []
    if not os.path.isdir(folder):
        raise BadInput(f"{folder}: is no folder; give --out another name")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be listed: {error.strerror}") from error
    return [name for name in names if name != LOCK and not name.startswith(PREFIX)]
