"""Deploy: files that other runtimes run, verified against the model they came from."""

from leanconv.deploy.export import Exported, export
from leanconv.deploy.runtimes import Runtime, open_file

__all__ = ["Exported", "Runtime", "export", "open_file"]
