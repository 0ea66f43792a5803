"""Runs of a W&B project, read through its public API."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from cvtune.errors import ConfigError
from cvtune.past import PastRun, flat

TIMEOUT_S = 60
REPORTS = 10_000  # of one run; W&B thins out what has more


def past_runs(entity: str, project: str) -> list[PastRun]:
    """Every run of a project, oldest first, with its settings, summary and history.

    Raises:
        ConfigError: there is no key, no such project, or the server does not answer.
    """
    import wandb

    where = f"{entity}/{project}"
    try:
        api = wandb.Api(timeout=TIMEOUT_S)
        return [_read(run) for run in api.runs(where, lazy=False, include_sweeps=False)]
    except wandb.errors.UsageError as error:
        raise ConfigError(
            f"{where}: no key of W&B ({error}). Log in with `wandb login`, or set WANDB_API_KEY."
        ) from None
    except Exception as error:  # its client raises errors of many kinds, some of them private
        raise ConfigError(
            f"{where}: the runs cannot be read ({_first_line(error)}). Check entity and project, and that the key may "
            "read them; or export them in W&B as CSV, and import that file."
        ) from None


def _read(run: Any) -> PastRun:
    rows = [dict(flat(row)) for row in run.history(samples=REPORTS, pandas=False)]
    summary = {name: value for name, value in flat(run.summary_metrics) if not name.startswith("_wandb")}
    created = None
    with contextlib.suppress(TypeError, ValueError):
        created = datetime.fromisoformat(run.created_at).timestamp()
    return PastRun(run.id, {**summary, **dict(flat(run.config))}, rows, str(run.state), created)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
