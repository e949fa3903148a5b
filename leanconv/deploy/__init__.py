"""Deploy: write files that other runtimes run, verified against the model."""

from leanconv.deploy.export import Exported, export
from leanconv.deploy.runtimes import Runtime, open_file

__all__ = ["Exported", "Runtime", "export", "open_file"]
