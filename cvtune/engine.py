"""Runs a Study on Ray Tune: folder, lease, check before the first trial, Ray, journal, and an orderly end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune

from cvtune import compact, confirm, preflight
from cvtune.actor import TrialActor, score_test
from cvtune.best import write_best
from cvtune.cluster import cluster, packed, slots_of, trial_resources
from cvtune.durable import read_json, remove_leftovers, write_whole
from cvtune.errors import ClusterError, CvtuneError, OwnedError
from cvtune.history import History
from cvtune.journal import Journal
from cvtune.lease import STOP_REQUEST, Lease
from cvtune.ledger import Ledger
from cvtune.packing import Packing
from cvtune.phases import Phases
from cvtune.preflight import Prepared
from cvtune.results import write_tables
from cvtune.signals import Signals, signals
from cvtune.study import Study
from cvtune.study_folder import LEFTOVERS, check_folder, check_unchanged, provenance
from cvtune.track.launch import tracked
from cvtune.tune import Echo, EndOfStudy, Proposer, Referee

Listener = Callable[[Mapping[str, Any], History], None]
TABLES_S = 30.0
EARLY_S = 1.0
PUBLISHED = ("CVTUNE_DATA", "TORCH_HOME")  # a cluster's workers have the environment of their node, not ours
HALT = "halt"  # a file in the term's folder: every process of a trial breaks off at its next batch


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
    track: Callable[[], None] = lambda: None  # starts the syncer
    finish: Callable[[Path], None] = lambda folder: None  # see run_study
    say: Callable[[str], None] = lambda line: None  # see run_study

    def job(self, prepared: Prepared, ray_folder: Path) -> dict[str, Any]:
        """What every trial's process is told beside its own trial. Plain JSON."""
        named = [name for name in PUBLISHED if os.environ.get(name)]
        return {
            "study": str(self.folder),
            "source": self.study.data.model_dump(mode="json"),
            "base": self.study.recipe.model_dump(mode="json", exclude_defaults=True),
            "cache": self.cache and str(self.cache),
            "cache_bytes": self.study.resources.cache_bytes,
            "store": prepared.store,
            "fingerprint": prepared.fingerprint,
            "roots": self.roots,
            "cwd": str(Path.cwd()),
            "folders": {name: str(Path(os.environ[name]).expanduser().absolute()) for name in named},
            "cpu": self.study.resources.cpu,
            "mps": self.study.resources.gpu_mps,
            "on_gpu": dataclasses.asdict(self.study.resources.on_gpu),
            "strip": self.study.tracking.strip,
            "folds": {
                "seed": self.study.data.split_seed,
                "objective": self.study.objective,
                "better": self.study.better,
            },
            "hang_s": self.study.resources.hang_s,
            "halt": str(ray_folder / HALT),
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
    settle: Callable[[Study], None] = lambda study: None,
    finish: Callable[[Path], None] = lambda folder: None,
) -> Outcome:
    """Run `study` in `storage/<name>` to its end, or take it up where it was left.

    Args:
        roots: folders that workers put on `sys.path`, so that the user's own functions can be imported there.
        listen: told every journal event, in the thread that drives Ray Tune.
        say: told in words what is being done before the first trial.
        settle: told the study as it runs, its objective settled, before the first event.
        finish: called with the folder once the study is complete and its tables are written, before it is given up, so
            that what it adds to the folder is delivered by tracking, too. It must not raise.

    Raises:
        ConfigError: the storage cannot be written, or holds another study under this name; or tracking lacks a key.
        DataError, ClusterError, OwnedError: as they say.
        Interrupted: a signal came before the first trial.
    """
    started = time.monotonic()
    folder = storage.resolve() / study.name
    study, earlier = check_folder(study, folder, resume)
    with signals() as caught:
        if earlier.complete and len(earlier.of("search", "control")) >= study.budget.trials:
            return Outcome(study, folder, earlier, None, 0.0)
        with tracked(study, folder, say) as track:
            study, history = _run(Setting(study, folder, cache, roots, track, finish, say), listen, say, settle, caught)
        broken_off = None if history.complete else caught.number  # it may have come when all was done
        return Outcome(study, folder, history, broken_off, time.monotonic() - started)


def _run(
    setting: Setting,
    listen: Listener,
    say: Callable[[str], None],
    settle: Callable[[Study], None],
    caught: Signals,
) -> tuple[Study, History]:
    """Check, Ray, lease, and one term. Returns the study as it ran."""
    study, folder = setting.study, setting.folder
    say("checking images and both ends of every searched domain; starting Ray")
    check = preflight.start(study, setting.cache, setting.roots)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if check.wait(EARLY_S) and caught.number is None:
                preflight.finish(check)  # what is wrong at first sight should not wait for Ray
        if caught.number is not None:
            raise Interrupted(caught.number)
        with cluster(study.resources.niceness, say):
            caught.install()  # ray.init has put its own handler of SIGTERM in place
            prepared = _finish(check, caught)
            for notice in prepared.notices:
                say(notice)
            check_unchanged(folder, prepared)
            study = study.settled(prepared.objective)
            settle(study)
            setting = dataclasses.replace(setting, study=study)
            resources = _room(study, caught)
            lease = Lease(folder)
            try:
                return study, _drive(setting, prepared, lease, resources, listen, caught)
            finally:
                lease.release()
    finally:
        if check.poll() is None:
            check.kill()


def _finish(check: subprocess.Popen[str], caught: Signals) -> Prepared:
    answer: list[Prepared | CvtuneError] = []

    def wait() -> None:
        try:
            answer.append(preflight.finish(check))
        except CvtuneError as error:
            answer.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    while waiter.is_alive() and caught.number is None:
        waiter.join(0.2)
    if caught.number is not None:  # a check that died then was sent the signal too: Ray and Slurm stop every process
        check.kill()
        raise Interrupted(caught.number)
    if isinstance(answer[0], CvtuneError):
        raise answer[0]
    return answer[0]


def _room(study: Study, caught: Signals) -> dict[str, float]:
    try:
        return trial_resources(study, lambda: caught.number is not None)
    except ClusterError:
        if caught.number is not None:
            raise Interrupted(caught.number) from None
        raise


def _drive(
    setting: Setting, prepared: Prepared, lease: Lease, resources: dict[str, float], listen: Listener, caught: Signals
) -> History:
    """One term: from the first line of its journal to the last, then tables and best recipe, however it ends."""
    study, folder = setting.study, setting.folder
    (folder / STOP_REQUEST).unlink(missing_ok=True)
    ledger = Ledger(study, folder, Journal(lease.journal, lease.lost.is_set), resources, listen)
    ray_folder = folder / ".ray" / str(lease.term)
    job, why, ended = setting.job(prepared, ray_folder), "failed", None
    try:
        saw = ledger.recover()
        measured = _measured(setting, ledger, job, caught)
        known = (read_json(folder / "study.json") or {}).get("provenance")
        known = known or provenance(prepared, [node["Resources"] for node in ray.nodes()])
        known |= {"gpu_of_trial": ledger.resources.get("GPU", 0)}
        write_whole(folder / "study.json", study.to_json(known))
        me = {"term": lease.term, **saw, "host": platform.node(), "pid": os.getpid(), "resources": ledger.resources}
        me |= {"cluster": ray.cluster_resources(), "fits": slots_of(ledger.resources, study.resources.labels, None)()}
        ledger.note("open", me)
        if measured is not None:
            ledger.note("share", measured.event())
        setting.track()
        watch = _Watch(setting, caught, lease, ledger, ray_folder)
        ended = _search(ledger, job, watch)
        if caught.number is None:
            _settle(ledger)
        done = caught.number is None and _confirm(ledger, job, watch)
        why = signal.Signals(caught.number).name if caught.number and not done else "complete"
    finally:
        if ledger.opened and not lease.lost.is_set():  # else everything here belongs to another process now
            ledger.note("close", {"why": why, "ended": ended})
            write_tables(folder, ledger.history)
            write_best(study, folder, ledger.history)
            remove_leftovers(folder, *LEFTOVERS)
            shutil.rmtree(folder / ".ray", ignore_errors=True)
            if why == "complete":
                setting.finish(folder)
        ledger.close(lost=lease.lost.is_set())
    return ledger.history


def _measured(setting: Setting, ledger: Ledger, job: dict[str, Any], caught: Signals) -> Packing | None:
    """Measure how many trials share a GPU, where that is asked for and no earlier term has; sets the ledger's share."""
    if setting.study.resources.gpu != "auto" or "GPU" not in ledger.resources or ledger.history.packing:
        return None
    setting.say("measuring how many trials can share a GPU (resources.gpu = auto)")
    try:
        found = packed(setting.study, job, ledger.resources, lambda: caught.number is not None)
    except ClusterError:
        if caught.number is not None:
            raise Interrupted(caught.number) from None
        raise
    ledger.resources["GPU"] = found.share
    return found


def _settle(ledger: Ledger) -> None:
    """Give every trial that the end of the budget broke off its reason."""
    for record in ledger.live:
        ledger.end(record.trial, "stopped_budget", ledger.spent() or "")


def _confirm(ledger: Ledger, job: dict[str, Any], watch: _Watch) -> bool:
    """Choose the winner on the validation images, and only then score the test images, once per trial.

    Returns whether all of it is done; a signal breaks it off, and the next term scores what is missing.
    """
    study, history = ledger.study, ledger.history
    winner = confirm.choose_winner(study, history)
    if winner is None:
        return True
    if not history.winners or history.winners[-1]["scores"] != winner["scores"]:
        ledger.note("winner", winner)
    remote = ray.remote(score_test).options(
        num_cpus=ledger.resources["CPU"],
        num_gpus=ledger.resources.get("GPU", 0),
        label_selector=study.resources.labels,
        max_retries=study.resources.retries,
    )
    asked = {
        remote.remote({**job, "trial": record.trial, "recipe": record.current.model_dump(mode="json")}): record
        for record in confirm.compared(study, history)
        if record.test is None
    }
    while asked:
        watch.look()
        if watch.asked.is_set():
            return False
        for done in ray.wait(list(asked), num_returns=1, timeout=0.25)[0]:
            ledger.note("test", {"trial": asked.pop(done).trial, **ray.get(done)})
    return True


def _search(ledger: Ledger, job: dict[str, Any], watch: _Watch) -> str | None:
    """Ray Tune's loop in a thread of its own, so that signals find the main thread awake. Returns why it ended."""
    slots = slots_of(ledger.resources, ledger.study.resources.labels, ledger.study.resources.max_concurrent)
    referee, phases = Referee(ledger, job, slots), Phases(ledger)
    proposer = Proposer(ledger, referee, phases, slots)
    raised: list[BaseException] = []

    def target() -> None:
        try:
            tune.run(
                TrialActor,
                name="tune",
                storage_path=str(watch.ray_folder),
                search_alg=proposer,
                scheduler=referee,
                stop=EndOfStudy(watch.asked),
                callbacks=[Echo(referee)],
                reuse_actors=True,
                verbose=0,
                raise_on_failed_trial=False,
            )
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, name="tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.25)
            watch.look()
    except BaseException:
        watch.asked.set()  # nothing may be written to a journal that is closed
        thread.join(15)
        raise
    if raised:
        raise cause_of(raised[0])
    return phases.search_over


def cause_of(error: BaseException) -> BaseException:
    """What our own code has raised within Ray Tune, such as of a full disk: Tune raises its traceback as a text."""
    within = error.__context__
    return within if isinstance(error, tune.TuneError) and isinstance(within, OSError | CvtuneError) else error


class _Watch:
    """What the main thread looks at a few times a second: signals, `cvtune stop`, lease, time budget, tables."""

    def __init__(self, setting: Setting, caught: Signals, lease: Lease, ledger: Ledger, ray_folder: Path) -> None:
        self.asked, self.ray_folder = threading.Event(), ray_folder
        self._folder, self._caught, self._lease, self._ledger = setting.folder, caught, lease, ledger
        self._due = time.monotonic() + TABLES_S

    def look(self) -> None:
        if (self._folder / STOP_REQUEST).exists():
            (self._folder / STOP_REQUEST).unlink(missing_ok=True)
            self._caught.number = self._caught.number or signal.SIGTERM
        if self._lease.lost.is_set():
            raise OwnedError(
                f"study {str(self._folder)!r} was taken over by another process while this one was silent."
            )
        if self._caught.number is not None and not self.asked.is_set():
            with contextlib.suppress(OSError):  # a full disk: the trials are then ended without it
                write_whole(self.ray_folder / HALT, "")
            self.asked.set()
        self._ledger.commit()
        if time.monotonic() > self._due:
            begun = time.monotonic()
            compact.catch_up(self._folder)
            write_tables(self._folder)
            self._due = time.monotonic() + max(TABLES_S, 20 * (time.monotonic() - begun))
