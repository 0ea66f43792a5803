"""When what happened in the processes of a run: each optimizer step and report, a line each in a file per process.

Both sides of a comparison are watched by the same few lines, told where to write by `FOLDER` in their environment.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "RULER_STAMPS"
_trials = itertools.count()


@dataclass(frozen=True)
class Trained:
    """One trial in one process: seconds since 1970 of its first optimizer step and of its last step or report."""

    first: float
    last: float


def watch() -> None:
    """From here on every optimizer step of this process is stamped, once; nothing where `FOLDER` is not set."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    if FOLDER in os.environ and not getattr(watch, "done", False):
        watch.done = True  # type: ignore[attr-defined]
        register_optimizer_step_post_hook(_stepped)


def reported() -> None:
    """Stamp that the trial of this process is about to report."""
    _write("report")


def _stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not hasattr(optimizer, "ruler_trial"):
        optimizer.ruler_trial = next(_trials)  # each trial has an optimizer of its own
        _write("first")
    _write("step")


def _write(what: str) -> None:
    if FOLDER in os.environ:
        with (Path(os.environ[FOLDER]) / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{time.time()} {what}\n")


def read(folder: Path) -> list[Trained]:
    """Every trial by its first step, in that order."""
    trials = []
    for path in folder.glob("*.txt"):
        firsts: list[float] = []
        lasts: list[float] = []
        for t, what in (line.split() for line in path.read_text().splitlines()):
            if what == "first":
                firsts.append(float(t))
                lasts.append(float(t))
            elif lasts:
                lasts[-1] = float(t)
        trials += [Trained(*ends) for ends in zip(firsts, lasts, strict=True)]
    return sorted(trials, key=lambda trial: trial.first)


def turnarounds(trials: list[Trained], slots: int, ends: Sequence[float] = ()) -> list[float]:
    """Seconds between the end of a trial and the first step of the one that follows on its slot.

    The k-th trial that begins after the first `slots` ones follows the k-th that ends. `ends`: when the trials' last
    reports were decided on, seconds since 1970; where nobody has written that down, a trial ends with its last stamp.
    """
    ended = sorted(ends or [trial.last for trial in trials])
    return [trial.first - end for trial, end in zip(trials[slots:], ended, strict=False)]
