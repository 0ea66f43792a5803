"""How many epochs does a search take? Searches replayed on whole recorded curves, by a clock that is not ours.

    uv run python tests/bench/replay.py TABLE.parquet... [--sides ray ray-tpe searcher.name=tpe] [--seeds 20]

Schedulers and searchers are the objects that decide in a real study; only the training is looked up (`curves.py` makes
the table). Ours are asked by cvtune's ledger, as in `cvtune run`; Ray's own `ASHAScheduler` and its `OptunaSearch`
take their places in the same game. Everybody chooses among the rows of the table: a proposal becomes the nearest row
that was not tried, by the distance in the unit cube of the space, and the searcher learns the row's own values. A
trial's curve is that of one recorded seed, which differs by row and seed of the game and is the same for all sides.

A search has reached its goal once the row that looks best to it (best validation score of all reports) ends within
0.01 of the best row, both by the mean last score over all recorded seeds, and keeps to such rows until the game is
over; a first hit would say little, as the very first report may come from a good row. Counted are the epochs reported
until then; a search that does not get there counts with all that it was given. Printed are geometric means over the
games with bootstrap intervals over seeds, and the mean regret on the way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from candidates import estimated
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from cvtune.board import Board
from cvtune.explained import Explained, common
from cvtune.forecast import Game, on_paper
from cvtune.history import TrialRecord
from cvtune.space import LogUniform, Space, Uniform
from cvtune.study import SWEET_SPOT, Study, make, parse_assignment
from cvtune.suggest import Suggester, suggester

WITHIN = 0.01  # of the best row's mean last score
LOOKED_AT = (16, 32, 64, 128)  # epochs
PER_WORKER = 4  # epochs of a game; but never fewer than --epochs
WORKERS = (4, 16, 64)
SLOWEST = 5.0  # times the table's median epoch: a longer one was recorded while the machine stood still
RESAMPLES = 2000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Whole curves of recipes.

    Attributes:
        values: the searched values of each row.
        scores: (rows, seeds, epochs); NaN where a seed was not recorded.
        seconds: likewise, of each epoch.
        truth: (rows,) mean last score over the recorded seeds.
    """

    space: Space
    values: list[dict[str, Any]]
    scores: Floats
    seconds: Floats
    truth: Floats

    @staticmethod
    def of(space: Space, values: list[dict[str, Any]], scores: Floats, seconds: Floats) -> Table:
        return Table(space, values, scores, seconds, np.nanmean(scores[:, :, -1], axis=1))

    @staticmethod
    def read(path: Path) -> Table:
        """What `curves.py --table` wrote; recipes without a run are left out."""
        table = pq.read_table(path)
        space = Space.model_validate(json.loads(table.schema.metadata[b"space"]))
        frame = table.to_pandas()
        rows = {recipe: row for row, recipe in enumerate(sorted(frame["recipe"].unique()))}
        first = frame.drop_duplicates("recipe").set_index("recipe")
        shape = (len(rows), int(frame["seed"].max()) + 1, int(frame["epoch"].max()))
        scores, seconds = np.full(shape, np.nan), np.full(shape, np.nan)
        place = (frame["recipe"].map(rows).to_numpy(), frame["seed"].to_numpy(), frame["epoch"].to_numpy() - 1)
        scores[place] = frame["val_accuracy"]
        seconds[place] = np.minimum(frame["seconds"], SLOWEST * frame["seconds"].median())
        return Table.of(space, first.loc[list(rows), list(space.domains)].to_dict("records"), scores, seconds)


@dataclass(frozen=True)
class Side:
    """One way to search: settings of a study, and who takes the places of our scheduler and searcher.

    Attributes:
        hints: whether it is told what the built-in study says is likely; nobody who searches with Ray Tune is.
    """

    settings: Mapping[str, Any]
    hints: bool = True
    board: Callable[[Study], Board] = Board
    searcher: Callable[[Study], Suggester] = suggester


class RayAsha(Explained, ASHAScheduler):
    """Ray's own, as it stands."""


def ray_asha(**rules: Any) -> Callable[[Study], Board]:
    """A board that asks Ray's ASHA instead of ours."""

    def board(study: Study) -> Board:
        made = Board(study)
        made._inner = RayAsha(max_t=study.recipe.rounds, **rules, **common(study))
        return made

    return board


class RayTpe:
    """Ray's `OptunaSearch` with its default sampler, TPE, told what Ray tells it: a stopped trial's last score."""

    cheap = False

    def __init__(self, study: Study) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {Uniform: False, LogUniform: True}
        axes: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(domain.low, domain.high, log=kinds[type(domain)])
            for name, domain in study.space.plain().items()
            if isinstance(domain, Uniform | LogUniform)
        }
        self._objective = study.objective
        self._search = OptunaSearch(space=axes, metric=study.objective, mode=study.better, seed=study.recipe.seed)
        self._values: dict[str, dict[str, Any]] = {}

    def suggest(self, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._search.suggest(str(number)) or {})

    def observe(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "trial":
            self._values[event["trial"]] = event["values"]
        elif event.get("reason") is not None:
            # The row that was trained lies near what was proposed: it is told by its own values.
            self._search.add_evaluated_point(self._values[event["trial"]], event[self._objective])


class Nearest:
    """Turns a searcher's proposals into rows of the table, each once."""

    def __init__(self, inner: Suggester, table: Table) -> None:
        self._inner, self._table = inner, table
        self.cheap, self.observe = inner.cheap, inner.observe
        self._cube = np.array([table.space.encode(values) for values in table.values])
        self._left = np.ones(len(table.values), bool)

    def suggest(self, number: int, given: Mapping[str, Any]) -> dict[str, Any] | None:
        proposed = self._inner.suggest(number, given)
        if proposed is None or not self._left.any():
            return None
        far = np.linalg.norm(self._cube - self._table.space.encode(proposed), axis=1)
        row = int(np.where(self._left, far, np.inf).argmin())
        self._left[row] = False
        return dict(self._table.values[row])


class Recorded:
    """A world in which a trial's next epoch is looked up."""

    def __init__(self, table: Table, study: Study, rng: np.random.Generator) -> None:
        self._table, self._objective = table, study.objective
        self._row = {_key(values): row for row, values in enumerate(table.values)}
        known = np.isfinite(table.scores[:, :, 0])
        self._seed = [int(rng.choice(np.flatnonzero(there))) for there in known]
        self.reports: list[tuple[int, float]] = []  # row, score

    def row(self, record: TrialRecord) -> int:
        return self._row[_key(record.values)]

    def opening(self, record: TrialRecord) -> float:
        return self._seconds(record, record.steps)

    def between(self, record: TrialRecord) -> float:
        return self._seconds(record, record.steps)

    def report(self, record: TrialRecord, step: int) -> dict[str, Any]:
        row = self.row(record)
        score = float(self._table.scores[row, self._seed[row], step - 1])
        self.reports.append((row, score))
        numbers = {"step": step, "epoch": step, "seconds": self._seconds(record, step - 1), self._objective: score}
        return {"train_loss": 1.0, "val_loss": 1.0, **numbers}

    def _seconds(self, record: TrialRecord, done: int) -> float:
        row = self.row(record)
        return float(self._table.seconds[row, self._seed[row], done])


@dataclass(frozen=True)
class Played:
    """One game.

    Attributes:
        regret: after each reported epoch, of the row that looked best then.
        clock: seconds at each reported epoch.
    """

    regret: Floats
    clock: Floats

    @property
    def reached(self) -> int:
        """Epochs until the goal; all that were trained where it was not reached."""
        short = np.flatnonzero(self.regret > WITHIN)
        return min(int(short[-1]) + 2, len(self.regret)) if len(short) else 1


def study_of(table: Table, side: Side, seed: int) -> Study:
    """The study that a side plays: only the search, without noise trials and confirmation."""
    tree = {
        "space": hinted(table.space) if side.hints else table.space,
        "objective": "val_accuracy",
        "noise_seeds": 0,
        "confirm": {"top": 0},
    }
    about = {"seed": seed, "max_epochs": table.scores.shape[2], "budget.trials": len(table.values)}
    return make(tree).set({**about, **side.settings})


def hinted(plain: Space) -> Space:
    """A recorded space with what the built-in study of today says of the same ranges."""
    known = {(name, *domain.edges()): domain for name, domain in SWEET_SPOT.domains.items()}
    return Space(domains={n: known.get((n, *domain.edges()), domain) for n, domain in plain.domains.items()})


def play(table: Table, side: Side, workers: int, seed: int, epochs: int) -> Played:
    """Let one side search with so many trials at once until `epochs` are reported or every row was tried."""
    study, clock = study_of(table, side, seed), []
    world = Recorded(table, study, np.random.default_rng([seed, 1]))

    def enough() -> bool:
        clock.append(game.now)
        return len(clock) >= epochs

    with tempfile.TemporaryDirectory(prefix="cvtune-replay-") as folder:
        ledger = on_paper(study, Path(folder))
        ledger.board = side.board(study)
        ledger.suggester = Nearest(side.searcher(study), table)
        game = Game(ledger, workers, world)
        game.play(enough)
    return Played(regrets(table, world.reports), np.array(clock))


def regrets(table: Table, reports: Sequence[tuple[int, float]]) -> Floats:
    """After each (row, score): by how much the truth of the row with the best score so far is below the best row's."""
    best, picked = -np.inf, list[int]()
    for row, score in reports:
        best, pick = (score, row) if score > best else (best, picked[-1])
        picked.append(pick)
    return np.asarray(table.truth.max() - table.truth[picked])


def _key(values: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(values[name] for name in sorted(values))


SIDES = {
    "ray": Side({}, False, ray_asha(grace_period=1, reduction_factor=3)),
    "ray-tpe": Side({}, False, ray_asha(grace_period=1, reduction_factor=3), RayTpe),
    "default": Side({}),
    "default-without-hints": Side({}, False),
    "tpe-estimated": Side({}, searcher=estimated),
    "promotion-tpe-estimated": Side({"scheduler.name": "promotion"}, searcher=estimated),
}


def side_of(text: str) -> Side:
    """A row of `SIDES`, or settings: `searcher.name=tpe,searcher.startup=5`."""
    return SIDES[text] if text in SIDES else Side(dict(map(parse_assignment, text.split(","))))


def interval(logs: Floats) -> tuple[float, float, float]:
    """Geometric mean and its 95 % bootstrap interval, of the logarithms (seeds,) of ratios or epochs."""
    means = np.random.default_rng(0).choice(logs, (RESAMPLES, len(logs))).mean(axis=1)
    return tuple(np.exp([logs.mean(), *np.quantile(means, [0.025, 0.975])]).tolist())


def line(name: str, games: Sequence[Sequence[Played]], ours: Floats, others: Sequence[Floats]) -> str:
    """One row of the printed table; `games` by (table and workers, seed), their epochs to the goal `ours`."""
    cells = ["{:.1f} ({:.1f} to {:.1f})".format(*interval(np.log(ours).mean(axis=0)))]
    cells += ["{:.2f} ({:.2f} to {:.2f})".format(*interval(np.log(ours / other).mean(axis=0))) for other in others]
    for epochs in LOOKED_AT:
        left = np.array([[g.regret[min(epochs, len(g.regret)) - 1] for g in row] for row in games]).mean(axis=0)
        cells.append(f"{left.mean():.4f} +- {left.std(ddof=1) / len(left) ** 0.5:.4f}")
    cells.append(f"{np.mean([g.clock[g.reached - 1] for row in games for g in row]):.0f}")
    return " | ".join([f"{name:24}", *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--sides", nargs="+", default=list(SIDES)[:3], help="ratios are to the first two")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=LOOKED_AT[-1], help="of a game; many: until every row was tried")
    given = parser.parse_args()
    tables = [Table.read(path) for path in given.tables]
    for path, table in zip(given.tables, tables, strict=True):
        recorded, good = np.isfinite(table.scores[:, :, 0]).sum(axis=0), table.truth >= table.truth.max() - WITHIN
        print(f"{path}: {recorded.tolist()} rows by seed, {good.sum()} of {len(good)} reach the goal")
    print(f"side | epochs | of {' | of '.join(given.sides[:2])} | regret after {' | '.join(map(str, LOOKED_AT))} | s")
    others: list[Floats] = []
    for name in given.sides:
        pairs = [(table, workers) for table in tables for workers in given.workers]
        side, seeds = side_of(name), range(given.seeds)
        games = [
            [play(table, side, workers, seed, max(given.epochs, PER_WORKER * workers)) for seed in seeds]
            for table, workers in pairs
        ]
        ours = np.array([[game.reached for game in row] for row in games], float)
        others += [ours] if len(others) < 2 else []
        print(line(name, games, ours, others), flush=True)


if __name__ == "__main__":
    main()
