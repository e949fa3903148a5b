"""Prints the oldest versions that pyproject.toml allows, `name==version` a line: constraints for pip.

A requirement without a floor is an error: floors are what `make test-oldest` ran with.
"""

import re
import sys
import tomllib
from pathlib import Path

FLOOR = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9][0-9a-z.]*)")


def floors(text: str) -> dict[str, str]:
    """Name -> the oldest version that is allowed, of everything that a pyproject.toml asks for."""
    content = tomllib.loads(text)
    project = content["project"]
    listed = [*content["build-system"]["requires"], *project["dependencies"]]
    listed += [one for extra in project["optional-dependencies"].values() for one in extra]
    found: dict[str, str] = {}
    for requirement in listed:
        if re.match(rf"{project['name']}\s*\[", requirement):  # an extra made of others
            continue
        parts = FLOOR.fullmatch(requirement)
        if parts is None:
            raise ValueError(f"{requirement!r} in pyproject.toml has no floor alone: write it as NAME>=VERSION")
        name, version = parts.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} has two floors in pyproject.toml, {found[name]} and {version}")
    return found


if __name__ == "__main__":
    try:
        oldest = floors((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(str(error))
    print(*(f"{name}=={version}" for name, version in oldest.items()), sep="\n")
