"""A process that helps to train a trial on several GPUs (`python -m cvtune.follow SIZE FOLDER RANK`).

It does what the first process orders (see `crew`): builds the same run, loads the same checkpoint, trains its rows of
every batch. It reports nothing, evaluates nothing, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cvtune import actor
from cvtune.crew import tell
from cvtune.errors import told
from cvtune.evaluation import Stopped, never
from cvtune.heap import keep_memory
from cvtune.team import Team, join
from cvtune.train import begin_pass, one_pass, seed_pass


def follow(team: Team) -> None:
    """Carry out orders: ("trial", config), ("state", checkpoint or None, step), ("pass",), ("end",)."""
    run: Any = None
    while (order := team.heard())[0] != "end":
        what, *more = order
        if what == "trial":
            if run is not None:
                run.close()
            run = None  # two models at once may not fit into memory
            actor.settle(more[0])
            _, run = actor.team_run(more[0], team)
        elif what == "state":
            if more[0] is not None:
                actor.load(run, Path(more[0]))
            run.step = more[1]
            team.same(run.model.module)
        else:
            with contextlib.suppress(Stopped):
                now = begin_pass(run)
                one_pass(run, now, seed_pass(run), never)
                run.step, run.epoch = run.step + 1, run.epoch + 1


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Meet the others and follow."""
    size, folder, rank = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    keep_memory()
    try:
        (folder / f"ready-{rank}").touch()
        follow(join(rank, size, folder))
    except Exception as error:
        with contextlib.suppress(OSError):  # the first process is gone, and the folder with it
            tell(folder, rank, actor.reason_of(error), told(error))
        sys.exit(1)
    os._exit(0)  # with gloo's threads the interpreter takes seconds to end


if __name__ == "__main__":
    main()
