"""`leanconv doctor`: list what this machine can run, and what to install for the rest."""

from leanconv.cli.common import Json, report


def command(json: Json = False) -> None:
    """List what this machine can run (CPU, threads, GPUs, compilers, libraries), and what to install for the rest."""
    from leanconv.engine import diagnose

    report(diagnose(), json=json)
