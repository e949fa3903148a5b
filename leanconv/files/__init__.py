"""Files that other processes use too: atomic writes, one writer at a time, and careful reading."""

from leanconv.files.atomic import json_text, replace_atomic, write_atomic, write_json, write_together
from leanconv.files.drafts import draft, draft_on_demand, sweep
from leanconv.files.locks import LOCK, Held, Lock, NoLocks, holder
from leanconv.files.own import check_own, check_report, origin
from leanconv.files.reading import check_file, check_run, read_bytes, read_json, read_toml

__all__ = [
    "LOCK",
    "Held",
    "Lock",
    "NoLocks",
    "check_file",
    "check_own",
    "check_report",
    "check_run",
    "draft",
    "draft_on_demand",
    "holder",
    "json_text",
    "origin",
    "read_bytes",
    "read_json",
    "read_toml",
    "replace_atomic",
    "sweep",
    "write_atomic",
    "write_json",
    "write_together",
]  # fmt: skip
