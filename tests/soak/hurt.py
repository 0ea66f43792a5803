"""A study that is run, hurt and looked at: what the cases of `cases.py` are made of."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtune import journal
from cvtune.event import Event
from cvtune.history import History
from tests.invariants import MARK, check, trained_the_same

SMALL = ("data.image_size=16", "model.width=4", "augment.flip=none", "data.train_fraction=0.5")
QUICK = (*SMALL, "tracking.mode=off", "resources.niceness=0")  # an equal share of a machine that others use as well
WHOLE = (*QUICK, "scheduler.name=fifo", "noise_seeds=0", "confirm.top=0")
EPOCH = re.compile(r"^epoch \d+:", re.MULTILINE)


class Bench:
    """One case's study, in a folder of its own. What was done to it is kept there, so that a case can go on.

    Attributes:
        study: the study's folder.
        faults: when each fault came, and which trial it hit.
    """

    def __init__(self, root: Path, name: str, most_s: float, ray: Mapping[str, str] | None = None) -> None:
        """`most_s`: after so many seconds no further fault is begun. `ray`: says where it runs; None: on its own."""
        self.root, self.folder, self.name, self.ray = root, root / name, name, ray or {}
        self.study, self.cache = self.folder / "studies" / "digits", root / "cache"
        self.mark = {MARK: f"soak-{root}-{name}"}
        self._until = time.monotonic() + most_s
        self._driver: subprocess.Popen[str] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("faulty.py"), self.folder)
        self._written = self.folder / "faults.jsonl"
        lines = self._written.read_text().splitlines() if self._written.exists() else []
        self.faults: list[dict[str, Any]] = [json.loads(line) for line in lines]

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self._until

    def environment(self, **more: str) -> dict[str, str]:
        """Of a run: no report at its end, no account of anybody's, processes that can be found."""
        own = {"CVTUNE_REPORT": "0", "NETRC": os.devnull, **self.mark, **self.ray, **more}
        return {**{k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "RAY_ADDRESS")}, **own}

    def command(self, settings: Sequence[str]) -> list[str]:
        places = ["--storage", str(self.study.parent), "--cache", str(self.cache)]
        chosen = [part for setting in settings for part in ("--set", setting)]
        return [sys.executable, "-m", "cvtune.cli", "run", "digits", *chosen, *places]

    def start(self, settings: Sequence[str], **more: str) -> subprocess.Popen[str]:
        """`cvtune run`; what it prints is added to `driver.log`."""
        with (self.folder / "driver.log").open("a") as log:
            driver = subprocess.Popen(
                self.command(settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env=self.environment(**more),
            )
        return self.watched(driver)

    def watched(self, driver: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """The run that is waited for, and that `end` ends."""
        self._driver = driver
        return driver

    def end(self) -> None:
        """End the run in good order, if one is there; the next goes on."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.terminate()
            self._driver.wait(300)

    def ended(self, driver: subprocess.Popen[str], seconds: float = 900) -> int:
        """Wait for the end of a run; returns its exit code."""
        return driver.wait(seconds)

    def said(self) -> str:
        """What all runs have printed, without line breaks."""
        return " ".join((self.folder / "driver.log").read_text().split())

    def hurt(self, trial: str | None = None) -> None:
        """Write down that a fault is done now."""
        self.faults.append({"t": time.time(), "trial": trial})
        with self._written.open("a") as file:
            file.write(json.dumps(self.faults[-1]) + "\n")

    def events(self, *kinds: str) -> list[Event]:
        if not (self.study / "journal").exists():
            return []
        return [event for event in journal.read(self.study) if event["kind"] in kinds]

    def wait(self, what: Callable[[], Any], seconds: float = 600) -> Any:
        """Wait until `what` gives something, and return it."""
        until = time.monotonic() + seconds
        while not (found := what()):
            code = self._driver and self._driver.poll()
            assert code is None, f"{self.name}: the run ended with {code}; see {self.folder / 'driver.log'}"
            assert time.monotonic() < until, f"{self.name}: waited {seconds} s; see {self.folder / 'driver.log'}"
            time.sleep(0.1)
        return found

    def reports_after(self, t: float, trial: str | None = None) -> list[Event]:
        """The reports since `t`, of one trial or of all."""
        return [e for e in self.events("epoch") if e["t"] > t and trial in (None, e["trial"])]

    def wait_for_reports(self, count: int, seconds: float = 600) -> None:
        """Until there are so many more."""
        now = time.time()
        self.wait(lambda: len(self.reports_after(now)) >= count, seconds)

    def running(self) -> list[Event]:
        """The latest segment of each trial that is not over, the newest last."""
        over = {e["trial"] for e in self.events("epoch", "end") if e["reason"] is not None}
        latest = {e["trial"]: e for e in self.events("segment") if e["trial"] not in over}
        return sorted(latest.values(), key=lambda event: float(event["t"]))

    def kill(self, victims: Sequence[Event]) -> None:
        """Kill the processes of running trials at once; wait until each has reported again."""
        hit = []
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim["pid"], signal.SIGKILL)
                self.hurt(victim["trial"])
                hit.append(self.faults[-1])
        self.wait(lambda: all(self._goes_on(fault["t"], fault["trial"]) for fault in hit))

    def _goes_on(self, t: float, trial: str) -> bool:
        """Whether a trial has reported since `t`, or was over before it could be hit."""
        return bool(self.reports_after(t, trial)) or trial not in {e["trial"] for e in self.running()}

    def finish(self, settings: Sequence[str], driver: subprocess.Popen[str] | None = None, **more: str) -> History:
        """Run the study to its end and assert what holds for every study."""
        code = self.ended(driver or self.start(settings, **more))
        assert code == 0, f"exit code {code}: {self.said()[-1500:]}"
        return check(self.study, code, self.mark)

    def as_without(self, settings: Sequence[str]) -> Path:
        """Assert that the study has trained what it trains undisturbed, which is run once; returns its folder."""
        whole = Bench(self.root, "whole-" + re.sub(r"\W+", "-", "-".join(settings[len(QUICK) :])), 0, self.ray)
        if not (whole.study / "tables").exists():
            try:
                whole.finish(settings)
            finally:
                whole.end()
        trained_the_same(self.study, whole.study)
        return whole.study

    def row(self) -> dict[str, Any]:
        """What can be counted: faults, seconds from each to the next new report, epochs that were trained again."""
        logs = [path.read_text() for path in self.study.glob("trials/*/*/log.txt")]
        again = sum(len(EPOCH.findall(text)) for text in logs) - len(self.events("epoch"))
        after = [self.reports_after(fault["t"], fault["trial"]) for fault in self.faults]
        waits = [round(found[0]["t"] - fault["t"], 1) for fault, found in zip(self.faults, after, strict=True) if found]
        return {"times": len(self.faults), "again": again, "recovered": summary(waits)}


def summary(seconds: Sequence[float]) -> Mapping[str, float]:
    """Median and largest."""
    return {"median": statistics.median(seconds), "most": max(seconds)} if seconds else {}
