"""The process that works ahead, as a file that Python runs: it watches its parent before it loads PyTorch."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End this process once `parent` has died; a compiler that it has started finishes its file.

    The system ends a stopped group that nobody in its session could continue. Where an ancestor in the session adopts
    it, as a container's first process does, it would stand still for ever: on Linux the parent's death continues us.
    """

    def end_if_orphaned(*_: object) -> None:
        if os.getppid() != parent:
            signal.signal(signal.SIGCONT, signal.SIG_IGN)
            os.killpg(0, signal.SIGCONT)
            os._exit(1)

    signal.signal(signal.SIGCONT, end_if_orphaned)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    end_if_orphaned()  # it died before


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    from leanconv.engine.ahead import main

    main(int(sys.argv[1]), int(sys.argv[2]))
