"""The process that trains trials: a Ray Trainable around `train`, used for one trial after another.

It writes only its attempt's folder. An error of the trial itself is caught and reported as its terminal reason;
what ends the process instead (a lost node, a kill) is Ray's to retry, from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from cvtune import mps
from cvtune.durable import is_full, open_log, write_whole
from cvtune.epoch import Epoch
from cvtune.errors import DataError, root_of, told
from cvtune.heap import keep_memory
from cvtune.pulse import Pulse, die_hung
from cvtune.recipe import Data, Recipe
from cvtune.sections import Source

if TYPE_CHECKING:
    from cvtune.team import Team

MOST_OPENED = 8
OPENED: dict[str, Any] = {}  # data sets of this process by their settings: mapped once, used by trial after trial


class TrialFailed(Exception):
    """Raised after a failure was reported, so that Ray ends this process and does not reuse it."""


class TrialActor(tune.Trainable):
    """One trial at a time. `setup` and `reset_config` begin one, each `step` trains one epoch."""

    _epochs: Iterator[dict[str, Any]]
    _folder: Path
    _pulse: Pulse
    _broken: Exception | None
    _crew: Any  # `crew.Crew`; None: no trial of this process spans several GPUs
    _loaded: Path | None  # the checkpoint that the run goes on from

    def setup(self, config: dict[str, Any]) -> None:
        settle(config)
        keep_memory()
        self._open = contextlib.ExitStack()  # what a trial leaves to be closed
        self._crew = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        try:
            self._begin(new_config)
        except Exception as error:  # Ray would neither retry nor end a trial whose reset fails: the first step says so
            self._broken = error
        return True

    def step(self) -> dict[str, Any]:
        if self._failed:
            raise TrialFailed(self._failed)
        if self._broken is not None:
            return self._failure(self._broken)
        with self._logged(), self._pulse.busy():
            try:
                epoch = next(self._epochs, None)
            except Exception as error:
                return self._failure(self._cause(error))
        if epoch is None:
            return {"cut": "deadline" if self._pulse.overdue else "halt", **self._identity()}
        return {**epoch, **self._identity()}

    def cleanup(self) -> None:
        self._release()
        if self._crew is not None:
            self._crew.close()

    def _cause(self, error: Exception) -> Exception:
        """What made this process fail.

        Raises:
            crew.ProcessLost: another process of the trial was lost, which is Ray's to retry as if this one were.
        """
        if self._crew is None:
            return error
        from cvtune.crew import ProcessLost

        cause: Exception = self._crew.cause(error)
        if isinstance(cause, ProcessLost):
            raise cause from error
        return cause

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray's own checkpoints hold nothing: ours lie in the attempt's folder, and `_begin` finds them."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._release()
        self._failed, self._broken, self._loaded, self._attempt, self._config = "", None, None, 0, config
        self._folder = Path(config["study"]) / "trials" / config["trial"]
        self._attempt = _new_attempt(self._folder)
        self._pulse = Pulse(
            Path(config["halt"]), config["deadline"], config["hang_s"], hung=lambda: die_hung(self._place)
        )
        self._open.callback(self._pulse.close)
        self._epochs = self._train()

    @property
    def _place(self) -> Path:
        return self._folder / str(self._attempt)

    def _release(self) -> None:
        self._epochs = iter(())
        self._open.close()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():  # collecting takes 0.2 s, which only GPU memory is worth
            gc.collect()
            torch.cuda.empty_cache()

    def _train(self) -> Iterator[dict[str, Any]]:
        """The numbers of each epoch, each saved before it is reported: what the driver knows can be taken up again."""
        config = self._config
        with self._pulse.unwatched():  # imports, decoding and building may take long
            from cvtune import checkpoint
            from cvtune.device import limit_memory
            from cvtune.team import ALONE

            if config["mps"] and 0 < config["gpu"] < 1:
                mps.join()
            limit_memory(config["gpu"])
            size = processes(config)
            if size > 1 and self._crew is None:
                from cvtune.crew import Crew

                self._crew = Crew(size)
            team = self._crew.team if self._crew and size > 1 else ALONE
            team.order("trial", config)
            loop, run = team_run(config, team)
            self._open.callback(run.close)
            numbers = self._restore(run)
            if team.size > 1:
                team.order("state", self._loaded and str(self._loaded), run.step)
                team.same(run.model.module)
        if numbers is not None:
            yield numbers
        unsaved = 0
        for epoch in loop.train(run, stop=self._pulse.stop):
            print(_line(epoch))
            try:  # before the checkpoint: an attempt that takes this up reports what it finds, and draws no more
                if run.recipe.train.loop is None:
                    draw_strip(getattr(run, "inner", run), config["strip"], self._place / "media")
            except OSError as error:
                print(f"no strip of step {epoch.step}: {error}")
            place = self._place / "checkpoints" / str(epoch.step)
            try:
                if state := run.state_dict():  # a loop of the user's own may have none
                    checkpoint.save(place, state, epoch.numbers())
                unsaved = 0
            except OSError as error:  # it costs a retry this epoch; it must not cost the trial
                print(f"checkpoint {place} not saved: {error}")
                unsaved += 1
                if unsaved > 1 and is_full(error):  # a journal may have room for long where no checkpoint has
                    yield {"cut": "full", "file": str(place)}
                    return
            self._pulse.beat()
            yield epoch.numbers()

    def _restore(self, run: Any) -> dict[str, Any] | None:
        """Load the furthest intact checkpoint; returns its report if the driver never got it.

        After an exploit the trial's own checkpoints count only where the exploit has been carried out; before that
        its weights are those of the donor, at its own number of reports.
        """
        from cvtune import checkpoint

        known_step, exploit = self._config["known_step"], self._config["exploit"]
        after = exploit or {"step": 0, "attempt": 0}
        for place in checkpoint.newest(self._folder):
            if int(place.name) <= after["step"] or int(place.parent.parent.name) <= after["attempt"]:
                continue
            if int(place.name) > known_step + 1:
                continue  # a report in between got lost with its driver; it is trained again
            if (numbers := load(run, place)) is not None:
                self._loaded = place
                print(f"taken up after epoch {run.epoch} from {place}")
                return numbers if numbers["step"] > known_step else None
        if exploit:
            for place in checkpoint.newest(self._folder.parent / exploit["donor"]):
                if int(place.name) == exploit["donor_step"] and load(run, place) is not None:
                    self._loaded = place
                    run.step = exploit["step"]
                    print(f"took over the weights of trial {exploit['donor']}, epoch {run.epoch}, from {place}")
                    return None
        if known_step > 0:
            of = f"of it or its donor {exploit['donor']}" if exploit else f"in {self._folder}"
            raise DataError(
                f"trial {self._folder.name} had reported {known_step} epochs, but no checkpoint {of} is intact. "
                "It is not started from scratch, which would repeat rows."
                + (" A train.loop that yields report(..., state=...) can be taken up." if run.recipe.train.loop else "")
            )
        return None

    def _failure(self, error: Exception) -> dict[str, Any]:
        if is_full(error) or mps.was_ended_by_another(error):  # not the trial's: Ray retries it, from its checkpoint
            raise error
        traceback.print_exc()
        self._failed = told(error)
        return {"failure": reason_of(error), "message": self._failed, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {"attempt": self._attempt, "node": platform.node(), "pid": os.getpid()}

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """What the trial prints goes to `log.txt` of its attempt."""
        with (
            open_log(self._place / "log.txt") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            yield


def processes(config: Mapping[str, Any]) -> int:
    """How many processes train a trial: one for each GPU that it spans. A loop of the user's own has them all."""
    return int(config["gpu"]) if config["gpu"] > 1 and not config["recipe"].get("train", {}).get("loop") else 1


def team_run(config: dict[str, Any], team: Team) -> tuple[Any, Any]:
    """`begun`, with the CPU cores of a trial divided among the processes of its team."""
    cpus, shared = config["cpu"] / team.size, 0 < config["gpu"] < 1
    limit_threads(cpus)
    told = {**config, "on_gpu": config["on_gpu"] | {"shared": shared}}
    return begun(told, max(0, int(cpus) - 1), not config["widens"], team)


def begun(config: dict[str, Any], workers: int = 0, divides: bool = True, team: Team | None = None) -> tuple[Any, Any]:
    """The module that carries a trial's recipe out (by `train` and `score_test`), and its Run at the beginning.

    `divides`: whether a batch that does not fit is trained in parts; else the trial ends, to get more of a GPU.
    """
    from cvtune import folds, own_loop, train
    from cvtune.on_gpu import OnGpu
    from cvtune.team import ALONE

    recipe = Recipe.model_validate(config["recipe"])
    data, on_gpu = opened(config, recipe), OnGpu(**config["on_gpu"])
    if recipe.data.folds:
        terms = folds.Terms(**config["folds"])
        return folds, folds.Run(recipe, data, terms, workers=workers, divides=divides, on_gpu=on_gpu)
    if recipe.train.loop is not None:
        return own_loop, own_loop.Run(recipe, data, workers=workers)
    return train, train.Run(recipe, data, workers=workers, divides=divides, team=team or ALONE, on_gpu=on_gpu)


def reason_of(error: Exception) -> str:
    """The terminal reason of a trial that raised `error`."""
    if isinstance(error, DataError):  # a broken file may have made a decoder ask for any memory
        return "data_error"
    root = root_of(error)  # the user's own function may have run out of it, which the error tells as its failure
    if type(root).__name__ == "OutOfMemoryError":  # torch's; it says so of GPUs only
        return "oom_gpu"
    if isinstance(root, MemoryError) or "DefaultCPUAllocator" in str(root):
        return "oom_host"
    return "code_error"


def settle(config: dict[str, Any]) -> None:
    """Let this process find what the driver finds: the user's modules, files by relative paths, published data."""
    with contextlib.suppress(OSError):  # a Ray job's working directory has another path on each node, and we are in it
        os.chdir(config["cwd"])
    for root in config["roots"]:
        if root not in sys.path:
            sys.path.insert(0, root)
    os.environ.update(config["folders"])


def limit_threads(cpus: float) -> None:
    """Keep to the cores that the trial was given; OpenCV would take all of the machine's."""
    import cv2
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    cv2.setNumThreads(0)


def opened(config: dict[str, Any], recipe: Recipe) -> Any:
    """The data set of a trial, opened at most once per process and setting.

    On the machine that checked the images the finished store is mapped; another machine builds its own, once.
    """
    from cvtune.data import cache_folder, open_dataset, open_store

    data_of = recipe.largest
    key = repr((config["source"], *_stored(data_of)))
    if key not in OPENED:
        as_checked = config["store"] and _stored(data_of) == _stored(Recipe.model_validate(config["base"]).largest)
        data = open_store(Path(config["store"])) if as_checked else None
        if data is None:
            cache = cache_folder(config["cache"] and Path(config["cache"]))
            threads = max(1, int(config["cpu"]))
            data = open_dataset(Source.model_validate(config["source"]), data_of, cache, config["cache_bytes"], threads)
        if data.fingerprint != config["fingerprint"]:
            raise DataError(
                f"{platform.node()} sees other images at {config['source']['source']} than the driver did "
                f"({data.fingerprint} instead of {config['fingerprint']}). Give every node the same data."
            )
        while len(OPENED) >= MOST_OPENED:
            OPENED.pop(next(iter(OPENED)))  # a trial that still has it keeps it
        OPENED[key] = data
    return OPENED[key]


def _stored(data: Data) -> tuple[Any, ...]:
    """What of a recipe's `data` decides how images are decoded."""
    return data.image_size, data.store_size, data.fit


def _new_attempt(trial: Path) -> int:
    """Create the folder of the next attempt and return its number. Making it is exclusive, so no two share one."""
    trial.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in trial.iterdir() if p.name.isdigit()), default=0)
    while True:
        try:
            (trial / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return number


def load(run: Any, place: Path) -> dict[str, Any] | None:
    """Bring `run` to a checkpoint and return the report saved with it; None if the checkpoint is not intact."""
    from cvtune import checkpoint

    try:
        state, numbers = checkpoint.load(place)
    except checkpoint.CheckpointError as error:
        print(f"skipped: {error}")
        return None
    run.load_state_dict(state)
    return numbers


def score_test(config: dict[str, Any]) -> dict[str, Any]:
    """Score the last checkpoint of a finished trial on the test images; writes `test.npz` beside it.

    Returns:
        The metrics by name (`test_accuracy`, ...). The file holds what `stored` of the task's `Sums` gives,
        and `groups` int64 (N,) where images belong together.
    """
    import numpy as np

    from cvtune import checkpoint

    settle(config)
    limit_threads(config["cpu"])
    folder = Path(config["study"]) / "trials" / config["trial"]
    loop, run = begun(config)
    if not any(load(run, place) is not None for place in checkpoint.newest(folder)):
        raise DataError(f"trial {config['trial']} cannot be scored: no checkpoint in {folder} is intact.")
    metrics: dict[str, Any]
    metrics, stored = loop.score_test(run)
    if run.data.test.groups is not None:
        stored["groups"] = run.data.test.groups
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **stored)
    write_whole(folder / "test.npz", content.getvalue())
    return metrics


def draw_strip(run: Any, count: int, folder: Path) -> None:
    """Draw what `run` makes of `count` validation images; see `strips.py`."""
    from cvtune import strips
    from cvtune.evaluation import strip_of

    if (picture := strip_of(run, count)) is not None:
        strips.save(folder, run.step, picture)


def _line(epoch: Epoch) -> str:
    shown = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mean_iou", "val_map", "lr", "seconds")
    known = {name: value for name in shown if (value := getattr(epoch, name)) is not None}
    return f"epoch {epoch.epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items())
