"""W&B's own client, bounded and quiet: the only module that sends runs.

Every call ends within `CALL_S`, or raises `Undelivered`. Nothing is captured: no code, git state, console, host name,
packages or system metrics. Behind it stands one process of W&B's (`wandb-core`) for all runs, which is ended with us.

The client says that a run is finished also where its upload was refused or given up, so the server is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from cvtune.durable import read_json, write_whole
from cvtune.errors import CvtuneError
from cvtune.sections import Tracking
from cvtune.track.priority import session_gives_way
from cvtune.track.runs import Row, Run, State
from cvtune.track.study_run import Parcel, Table

INIT_S, FINISH_S, CALL_S = 25.0, 60.0, 90.0
PROVE_S = 20.0  # within which the server shows what it took
STATE = """
query RunState($project: String!, $entity: String!, $name: String!) {
    project(name: $project, entityName: $entity) { run(name: $name) { state historyLineCount summaryMetrics } }
}
"""
STRIP = "predictions"  # key of a report's picture
DELIVERED = "delivered"  # key of the summary: the digest of what the run was told
# Of the user's own runs; they would name or move ours.
FOREIGN = (
    *("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS", "WANDB_NOTES", "WANDB_RESUME"),
    *("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_CONFIG_PATHS", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE"),
    *("WANDB_PROJECT", "WANDB_PROGRAM", "WANDB_HOST", "WANDB_CONSOLE", "WANDB_DISABLED", "WANDB_IGNORE_GLOBS"),
)


class Undelivered(CvtuneError):
    """W&B could not be told, or did not answer in time."""


class Client:
    """Begins runs of one study, online or as files in `<study>/wandb`."""

    def __init__(self, study: Path, tracking: Tracking, online: bool) -> None:
        self._study, self._tracking, self._online = study, tracking, online
        self._base = study / "wandb"
        # Files of artifacts are copied here, and the path is part of what is uploaded. `wandb sync` reads those of
        # offline runs, so they stay; online nobody needs them afterwards.
        self._files = Path(tempfile.mkdtemp(prefix="cvtune-sync-")) if online else self._base / "files"
        for name in FOREIGN:
            os.environ.pop(name, None)
        quieten()
        os.environ |= {"WANDB_CACHE_DIR": str(self._base / "tmp"), "WANDB_DATA_DIR": str(self._files)}
        with bounded("starting W&B's client"):
            import wandb

            self._wandb: Any = wandb
            self._api: Any = None
            wandb.setup(settings=self._settings()).ensure_service()
            self._remember_service()

    def begin(self, run: Run) -> Telling:
        """A new run, or online the one of this id with what the server has of it."""
        with bounded(f"beginning run {run.name!r}"):
            begun = self._wandb.init(
                project=self._tracking.project,
                entity=self._tracking.entity,
                id=run.id,
                name=run.name,
                group=run.group,
                job_type=run.job_type,
                tags=list(run.tags),
                config=run.config,
                dir=str(self._study),
                mode="online" if self._online else "offline",
                # An offline file holds its run from the first step on, so it replaces what `wandb sync` sent before.
                resume="allow" if self._online else None,
                reinit="create_new",
                settings=self._settings(),
            )
        return Telling(self._wandb, begun, self._online)

    def prove(self, told: Telling) -> None:
        """Ask the server whether it has all of a finished run; what it took shows after a moment.

        Raises:
            Undelivered: it does not.
        """
        until, pause = time.monotonic() + PROVE_S, 0.1
        while True:
            with bounded("asking for what was delivered"):
                self._api = self._api or self._wandb.Api()
                found = self._api._service_api.execute_graphql(STATE, told.names, timeout=INIT_S)
            run = (found.get("project") or {}).get("run") or {}
            summary = json.loads(run.get("summaryMetrics") or "{}")
            has_rows = (run.get("historyLineCount") or 0) >= told.lines
            if has_rows and summary.get(DELIVERED) == told.digest and run.get("state") != "running":
                return
            if time.monotonic() > until:
                raise Undelivered(f"the server does not have all of run {told.names['name']}, without any error")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def close(self) -> None:
        """End W&B's service."""
        with bounded("ending W&B's client"):
            self._wandb.teardown()
        if self._online:
            shutil.rmtree(self._files, ignore_errors=True)

    def _settings(self) -> Any:
        return self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            host="",
            init_timeout=INIT_S,
            label_disable=True,
            program="",
            sagemaker_disable=True,
            save_code=False,
            silent=True,
            symlink=False,
            use_dot_wandb=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )

    def _remember_service(self) -> None:
        """For the next syncer, which ends the service if this process is killed. The service gives way as we do."""
        cores = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        for core in cores:
            session_gives_way(core.pid)  # the rest it has inherited
        found = [{"pid": core.pid, "started": core.create_time()} for core in cores]
        known = {"format": 1, "host": socket.gethostname(), "processes": found}
        write_whole(
            self._base / "service.json", json.dumps(known | {"files": str(self._files) if self._online else None})
        )


class Telling:
    """One run that is being told.

    Attributes:
        first: the first step that W&B does not have; an earlier one is dropped by it.
        url: where to look at it; None offline.
        names: project, entity and name (its id) by which the server knows it.
        step: the last one that came, whether W&B had it or not.
        lines: rows of its history.
        digest: of what it was told, once it is finished.
    """

    def __init__(self, wandb: Any, run: Any, online: bool) -> None:
        self._wandb, self._run, self._online = wandb, run, online
        self.first = int(run.starting_step)
        self.url: str | None = run.project_url if online else None
        self.names = {"project": run.project, "entity": run.entity, "name": run.id}
        self.step, self.lines = 0, 0
        self.digest = ""

    def define(self, objective: str, better: str) -> None:
        """Let the summary of the objective be its best value."""
        with bounded("defining metrics"):
            self._run.define_metric(objective, summary=better)

    def row(self, row: Row) -> None:
        """Add to the history, unless W&B has it. All rows of a run are to be given."""
        self.step, self.lines = row.step, self.lines + 1
        if row.step >= self.first:
            with bounded(f"step {row.step}"):
                shown = {}
                if row.strip and row.strip.is_file():  # a long trial keeps fewer and fewer
                    shown[STRIP] = self._wandb.Image(str(row.strip))
                self._run.log(row.values | shown, step=row.step, commit=True)
            self.first = row.step + 1

    def look(self, step: int, tables: Mapping[str, Table], plots: Mapping[str, Any]) -> None:
        """Show tables and plotly figures, at the first step from `step` on that is free."""
        with bounded("tables and plots"):
            made: dict[str, Any] = {
                name: self._wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
                for name, table in tables.items()
            }
            made |= {name: self._wandb.Plotly(figure) for name, figure in plots.items()}
            if made:
                self.lines += 1
                self._run.log(made, step=max(step, self.first), commit=True)

    def parcel(self, parcel: Parcel) -> None:
        """Deliver an artifact; one with the same content is the same version."""
        with bounded(f"artifact {parcel.name!r}"):
            artifact = self._wandb.Artifact(parcel.name, parcel.type)
            for name, path in parcel.files.items():
                artifact.add_file(str(path), name=name)
            for name, text in parcel.texts.items():
                with artifact.new_file(name) as file:
                    file.write(text)
            if not self._online:
                self._run.log_artifact(artifact)
            elif parcel.used:
                self._run.use_artifact(artifact)
            else:
                self._run.log_artifact(artifact).wait()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the summary."""
        with bounded("the summary"):
            self._run.summary.update(dict(values))

    def finish(self, state: State, digest: str) -> str:
        """End the run; see `Client.prove` for whether W&B has it. Returns the name of an offline run's folder."""
        place, self.digest = Path(self._run.settings.sync_dir), digest
        self.summary({DELIVERED: digest})
        with bounded("finishing a run"):
            if state == "preempted":
                self._run.mark_preempting()  # makes W&B call a run preempted that ends with another code than 0
            self._run.finish(exit_code=0 if state == "finished" else 1)
        shutil.rmtree(place if self._online else place / "logs", ignore_errors=True)
        return place.name


def quieten() -> None:
    """Let W&B's client print nothing and tell W&B's own developers nothing."""
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


@contextlib.contextmanager
def bounded(what: str) -> Iterator[None]:
    """Raise Undelivered where a call fails or takes longer than `CALL_S`. In the main thread only."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {CALL_S:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, CALL_S)
    try:
        yield
    except Exception as error:  # whatever W&B's client, its service or the network may raise
        text = " ".join(str(error).split())[:500]
        refused = "401" in text or "403" in text or type(error).__name__ == "AuthenticationError"
        remedy = ". The key was refused: `wandb login --relogin`, or set WANDB_API_KEY." if refused else ""
        raise Undelivered(f"{what}: {type(error).__name__}: {text}{remedy}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_service(study: Path) -> None:
    """End the W&B service that a syncer of this study has left behind or is about to.

    It would go on uploading beside that of the next one. Where the machine is another, W&B's service has noticed by
    itself that its syncer is gone.
    """
    known = read_json(study / "wandb" / "service.json") or {}
    if known.get("host") != socket.gethostname():
        return
    for entry in known["processes"]:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(entry["pid"])
            if abs(process.create_time() - entry["started"]) < 1.0 and process.name() == "wandb-core":
                process.kill()
                process.wait(10)
    if known["files"]:
        shutil.rmtree(known["files"], ignore_errors=True)
