"""Runs a Study on Ray Tune: folder, lease, check before the first trial, Ray, journal, and an orderly end."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

# Read when Ray is imported. Under `uv run` Ray would start every worker through uv and upload the working directory;
# Tune would write three log formats and its own state per trial, which the journal replaces.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(_name, _value)

import ray
from ray import tune

from cvtune import preflight
from cvtune.actor import TrialActor
from cvtune.durable import read_json, write_whole
from cvtune.errors import ClusterError, CvtuneError, OwnedError
from cvtune.journal import History, Journal, load
from cvtune.lease import STOP_REQUEST, Lease
from cvtune.ledger import Ledger
from cvtune.preflight import Prepared
from cvtune.results import write_tables
from cvtune.study import Study
from cvtune.study_folder import check_folder, check_unchanged, provenance, write_best
from cvtune.tune import STOP, EndOfStudy, Proposer, Referee, ray_scheduler, replay

Listener = Callable[[dict[str, Any], History], None]
TABLES_S = 30.0
EARLY_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `signal` is what broke it off (a later run resumes), None when the study is complete."""

    study: Study
    folder: Path
    history: History
    signal: int | None
    seconds: float


@dataclass(frozen=True)
class Setting:
    """A study and where it runs."""

    study: Study
    folder: Path
    cache: Path | None
    roots: tuple[str, ...]

    def job(self, prepared: Prepared, deadline: float | None) -> dict[str, Any]:
        """What every trial's process is told beside its own recipe. Plain JSON."""
        return {
            "study": str(self.folder),
            "source": self.study.data.model_dump(mode="json"),
            "base": self.study.recipe.model_dump(mode="json", exclude_defaults=True),
            "cache": self.cache and str(self.cache),
            "cache_bytes": self.study.resources.cache_bytes,
            "store": prepared.store,
            "fingerprint": prepared.fingerprint,
            "roots": self.roots,
            "cpu": self.study.resources.cpu,
            "deadline": deadline,
        }


class Interrupted(Exception):
    """A signal came before any trial had started."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_study(
    study: Study,
    storage: Path,
    cache: Path | None = None,
    resume: Literal["auto", "must", "never"] = "auto",
    roots: tuple[str, ...] = (),
    listen: Listener = lambda event, history: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run `study` in `storage/<name>` to its end, or take it up where it was left.

    Args:
        roots: folders that workers put on `sys.path`, so that the user's own functions can be imported there.
        listen: told every journal event, in the thread that drives Ray Tune.
        say: told in words what is being done before the first trial.

    Raises:
        ConfigError: the storage cannot be written, or holds another study under this name.
        DataError, ClusterError, OwnedError: as they say.
        Interrupted: a signal came before the first trial.
    """
    started = time.monotonic()
    folder = storage.resolve() / study.name
    earlier = check_folder(study, folder, resume)
    with signals() as caught:
        if earlier.complete and earlier.trials and len(earlier.trials) >= study.budget.trials:
            return Outcome(study, folder, earlier, None, 0.0)
        say("checking images and both ends of every searched domain; starting Ray")
        setting = Setting(study, folder, cache, roots)
        check = preflight.start(study, cache, roots)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if check.wait(EARLY_S):
                    preflight.finish(check)  # what is wrong at first sight should not wait for Ray
            with cluster():
                caught.install()  # ray.init has put its own handler of SIGTERM in place
                prepared = _finish(check, caught)
                for notice in prepared.notices:
                    say(notice)
                check_unchanged(folder, prepared)
                resources = trial_resources(study)
                lease = Lease(folder)
                try:
                    history = _drive(setting, prepared, lease, resources, listen, caught)
                finally:
                    lease.release()
        finally:
            if check.poll() is None:
                check.kill()
        return Outcome(study, folder, history, caught.number, time.monotonic() - started)


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray on this machine for as long as we need it.

    Raises:
        ClusterError: neither worked.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = (
        {"object_store_memory": 200 * 2**20, "include_dashboard": False} if address == "local" else {}
    )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="cvtune", **local)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise ClusterError(
            f"Ray could not be {'started here' if address == 'local' else f'reached at RAY_ADDRESS={address}'} "
            f"({type(error).__name__}: {error}). Unset RAY_ADDRESS to run on this machine alone."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def trial_resources(study: Study) -> dict[str, float]:
    """CPUs and GPUs of one trial, in Ray's words.

    Raises:
        ClusterError: no node of the cluster could ever run a trial.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = study.resources.gpu
    if gpu is None:
        gpu = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if not any(node.get("CPU", 0) >= study.resources.cpu and node.get("GPU", 0) >= gpu for node in nodes):
        have = "; ".join(sorted({f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes}))
        raise ClusterError(
            f"a trial asks for resources.cpu = {study.resources.cpu:g} and resources.gpu = {gpu:g}; no node has that "
            f"(nodes have {have}). Lower them with --set."
        )
    return {"CPU": study.resources.cpu, **({"GPU": gpu} if gpu else {})}


class Signals:
    """The first of SIGINT, SIGTERM and SIGUSR1 that came; a second one ends the process at once."""

    number: int | None = None

    def install(self) -> None:
        """Take the signals, if this is the main thread: Python allows it only there."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_DFL)


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Catch signals while a study runs."""
    caught = Signals()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    caught.install()
    try:
        yield caught
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _finish(check: subprocess.Popen[str], caught: Signals) -> Prepared:
    answer: list[Prepared | CvtuneError] = []

    def wait() -> None:
        try:
            answer.append(preflight.finish(check))
        except CvtuneError as error:
            answer.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    while waiter.is_alive():
        waiter.join(0.2)
        if caught.number is not None:
            check.kill()
            raise Interrupted(caught.number)
    if isinstance(answer[0], CvtuneError):
        raise answer[0]
    return answer[0]


def _drive(
    setting: Setting, prepared: Prepared, lease: Lease, resources: dict[str, float], listen: Listener, caught: Signals
) -> History:
    """One term: from the first line of its journal to the last, then tables and best recipe, however it ends."""
    study, folder = setting.study, setting.folder
    before = (read_json(folder / "study.json") or {}).get("provenance")
    write_whole(
        folder / "study.json",
        study.to_json(before or provenance(prepared, [node["Resources"] for node in ray.nodes()])),
    )
    (folder / STOP_REQUEST).unlink(missing_ok=True)
    journal, history = Journal(lease.journal, lease.lost.is_set), load(folder)
    ledger = Ledger(study, folder, journal, history, resources.get("GPU", 0), lambda event: listen(event, history))
    ledger.note("open", {"term": lease.term, "host": platform.node(), "pid": os.getpid(), "resources": resources})
    why = "failed"
    try:
        inner = ray_scheduler(study)
        unfinished = _settle(replay(study, history, inner), ledger)
        referee = Referee(inner, ledger, added=set(history.trials))
        proposer = Proposer(ledger, setting.job(prepared, ledger.deadline), resources, unfinished)
        asked = threading.Event()
        watch = _watch(folder, caught, lease, ledger, asked)
        _run_tune(referee, proposer, asked, watch, folder / ".ray" / str(lease.term), resources)
        if caught.number is None:
            for record in [r for r in history.trials.values() if r.reason is None]:
                ledger.end(record.trial, "stopped_budget", ledger.spent() or "")
        why = "complete" if caught.number is None else signal.Signals(caught.number).name
    finally:
        if not lease.lost.is_set():  # else everything here belongs to another process now
            ledger.note("close", {"why": why})
            write_tables(folder, history)
            write_best(study, folder, history)
            shutil.rmtree(folder / ".ray", ignore_errors=True)
        journal.close()
    return history


def _settle(unfinished: list[Any], ledger: Ledger) -> list[Any]:
    """End the trials whose stop was decided but not written down any more; the rest is to be taken up again."""
    last = {call["trial"]: call for call in ledger.history.calls if call["hook"] == "on_trial_result"}
    open_trials = []
    for trial in unfinished:
        record = ledger.history.trials[trial.trial_id]
        if record.steps >= record.recipe.max_epochs:
            ledger.end(record.trial, "completed")
        elif record.trial in last and last[record.trial]["answer"] == STOP:
            ledger.end(record.trial, "stopped_scheduler", last[record.trial]["why"])
        else:
            open_trials.append(trial)
    return open_trials


def _run_tune(
    referee: Referee,
    proposer: Proposer,
    asked: threading.Event,
    watch: Callable[[], None],
    ray_folder: Path,
    resources: dict[str, float],
) -> None:
    """Ray Tune's loop in a thread of its own, so that signals find the main thread awake."""
    slots = int(min(ray.cluster_resources().get(kind, 0) // amount for kind, amount in resources.items()))
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, slots))
    raised: list[BaseException] = []

    def target() -> None:
        try:
            tune.run(
                TrialActor,
                name="tune",
                storage_path=str(ray_folder),
                search_alg=proposer,
                scheduler=referee,
                stop=EndOfStudy(asked),
                reuse_actors=True,
                verbose=0,
                raise_on_failed_trial=False,
            )
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, name="tune", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.25)
        watch()
    if raised:
        raise raised[0]


def _watch(folder: Path, caught: Signals, lease: Lease, ledger: Ledger, asked: threading.Event) -> Callable[[], None]:
    """What the main thread looks at a few times a second: signals, `cvtune stop`, lease, time budget, tables."""
    due = time.monotonic() + TABLES_S

    def watch() -> None:
        nonlocal due
        if (folder / STOP_REQUEST).exists():
            (folder / STOP_REQUEST).unlink(missing_ok=True)
            caught.number = caught.number or signal.SIGTERM
        overdue = ledger.deadline is not None and time.time() > ledger.deadline + 5.0  # trials end by themselves before
        if lease.lost.is_set():
            raise OwnedError(f"study {str(folder)!r} was taken over by another process while this one was silent.")
        if caught.number is not None or overdue:
            asked.set()
        if time.monotonic() > due:
            begun = time.monotonic()
            write_tables(folder)
            due = time.monotonic() + max(TABLES_S, 20 * (time.monotonic() - begun))

    return watch
