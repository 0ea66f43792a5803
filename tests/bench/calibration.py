"""Is the analysis as sure as it says? Studies with a known truth, simulated and analysed, a thousand of each kind.

    uv run python tests/bench/calibration.py --repetitions 1000

A study has 32 trials under ASHA (the project's own, as replayed over control trials), their points drawn at random or
by Optuna's TPE, and 3 noise trials. The truths are not drawn from the model that is fitted: peaks, plateaus, cliffs,
optima at a border, noise that grows with the strength, no effect; each without an interaction, and some with one. Score
curves rise by a power law whose height and speed depend on the setting; validation images are counted (binomial).

Results are kept as one small Parquet file per kind (`--out`); a run that was broken off goes on. Printed is a table:

- region: share of studies whose sweet spot holds the best setting (any where several are best); wanted 0.85-0.95
- area: mean share of the searched area that it takes
- band: share of settings whose true average lies in the pointwise 90 % interval; width: of that interval, in logits
- slope: coverage of the 90 % interval of the ridge's slope, and its mean width
- alarm: studies whose interaction is said to be shown, with the upper end of the 95 % binomial interval
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from cvtune import ASHA, Budget, LogUniform, Recipe, Study, Uniform, space
from cvtune.analysis.design import design_of
from cvtune.analysis.response import fit
from cvtune.analysis.surface import bilinear, interaction_of, interval, map_of, region_of, slopes
from cvtune.analysis.tables import Tables
from cvtune.controls import _Asha

EPOCHS, TRIALS, NOISE = 9, 32, 3
IMAGES = 1000  # for validation
CHUNK = 50  # repetitions between two writes
SPACE = space(
    {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)}
)
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logit of the final score at x, y; the rate's part comes on top


@dataclass(frozen=True)
class World:
    """A truth and its chances. `luck` (x): standard deviation of what a seed adds to a final score, in logits."""

    final: Truth
    luck: Callable[[np.ndarray], np.ndarray]
    rate: tuple[float, float, float]  # curvature, best quantile, interaction with x
    climb: tuple[float, float, float]  # height of a curve, how much of it comes with x, its power


def bump(u: np.ndarray, center: float, flat: float = 0.0) -> np.ndarray:
    """0 within `flat` of the center, and a parabola down from there."""
    return -(np.maximum(np.abs(u - center) - flat, 0) ** 2)


def world(kind: str, rng: np.random.Generator, size: float) -> World:
    """A random truth of a kind. `size`: of the interaction in logits, for the kinds with one."""
    a, b = rng.uniform(2, 6, 2)
    cx, cy = rng.uniform(0.2, 0.8, 2)
    top, edge, drop = rng.uniform(1.5, 2.5), rng.uniform(0.5, 0.85), rng.uniform(1, 2)
    noise = rng.uniform(0.03, 0.12)
    tilt = size / (2 * b)
    truths: dict[str, Truth] = {
        "peak": lambda x, y: top + a * bump(x, cx) + b * bump(y, cy),
        "plateau": lambda x, y: top + 2 * a * bump(x, cx, 0.2) + 2 * b * bump(y, cy, 0.2),
        "cliff": lambda x, y: top + 0.6 * x - drop / (1 + np.exp((edge - x) / 0.03)) + b * bump(y, cy),
        "border": lambda x, y: top - 1 + 0.3 * a * x - 0.3 * b * y,
        "uneven": lambda x, y: top + a * bump(x, cx) + b * bump(y, cy),
        "none": lambda x, y: top + 0 * x + 0 * y,
        "ridge": lambda x, y: top + a * bump(x, cx) + b * bump(y - tilt * (x - 0.5), cy),
        "ridge cliff": lambda x, y: top - drop / (1 + np.exp((edge - x) / 0.03)) + b * bump(y - tilt * (x - 0.5), cy),
        "saddle border": lambda x, y: top - 1 + 0.3 * a * x - 0.3 * b * y + size * (x - 0.5) * (y - 0.5),
    }
    uneven = kind == "uneven"
    return World(
        truths[kind],
        lambda x: noise * (0.5 + 2 * x) if uneven else noise + 0 * x,
        (rng.uniform(2, 6), rng.uniform(0.3, 0.7), rng.uniform(-1, 1)),
        (rng.uniform(1, 2), rng.uniform(0, 1), rng.uniform(0.4, 1)),
    )


KINDS = {  # kind of truth -> whether its axes interact
    "peak": False,
    "plateau": False,
    "cliff": False,
    "border": False,
    "uneven": False,
    "none": False,
    "ridge": True,
    "ridge cliff": True,
    "saddle border": True,
}


def final(true: World, u: np.ndarray) -> np.ndarray:
    """Logit of the final score without luck at places (M, 3)."""
    curvature, best, mixed = true.rate
    x, y, z = u.T
    return true.final(x, y) + curvature * bump(z, best) + mixed * (x - 0.5) * (z - 0.5)


def curve(true: World, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(EPOCHS,) scores of one trial at a place (3,)."""
    height, by_x, power = true.climb
    epochs = np.arange(1, EPOCHS + 1.0)
    missing = (epochs**-power - EPOCHS**-power) / (1 - EPOCHS**-power)
    lift = height + by_x * u[0] + 0.15 * rng.standard_normal()
    value = final(true, u[None])[0] + true.luck(u[0]) * rng.standard_normal() - lift * missing
    chance = 1 / (1 + np.exp(-value - 0.03 * rng.standard_normal(EPOCHS)))
    return rng.binomial(IMAGES, chance) / IMAGES


class Sampler:
    """Points of the search: at random, or Optuna's TPE as `suggest.py` asks it."""

    def __init__(self, name: str, seed: int, rng: np.random.Generator) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.rng, self.axes = rng, {k: optuna.distributions.FloatDistribution(0, 1) for k in "xyz"}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=10, multivariate=True, group=True)
        self.model = optuna.create_study(direction="maximize", sampler=sampler) if name == "tpe" else None

    def ask(self) -> np.ndarray:
        if self.model is None:
            return self.rng.random(3)
        self.trial = self.model.ask(self.axes)
        return np.array([self.trial.params[k] for k in "xyz"])

    def tell(self, scores: np.ndarray) -> None:
        import optuna

        if self.model is None:
            return
        if len(scores) == EPOCHS:
            self.model.tell(self.trial, float(scores.max()))
            return
        for step, score in enumerate(scores, 1):
            self.trial.report(float(score), step)
        self.model.tell(self.trial, state=optuna.trial.TrialState.PRUNED)


def simulated(true: World, searcher: str, seed: int, rng: np.random.Generator, trials: int) -> Tables:
    """The tables of one study."""
    asha, sampler = _Asha(ASHA(), EPOCHS), Sampler(searcher, seed, rng)
    rows: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    default = np.array([0.5, 0.25, 0.5])
    rows += [(f"n{k}", "noise", default, curve(true, default, rng)) for k in range(NOISE)]
    for k in range(trials):
        u = sampler.ask()
        scores = curve(true, u, rng)
        scores = scores[: asha.train(scores, float(u[:2].mean()), 0)]
        sampler.tell(scores)
        rows.append((f"s{k}", "search", u, scores))
    study = Study(space=SPACE, recipe=Recipe().replace({"max_epochs": EPOCHS}), budget=Budget(trials=trials))
    study = study.settled("val_accuracy")
    values = [SPACE.pick(dict(zip(SPACE.domains, row[2].tolist(), strict=True))) for row in rows]
    return Tables(
        study,
        trials={
            "trial": np.array([row[0] for row in rows], object),
            "role": np.array([row[1] for row in rows], object),
            **{name: np.array([v[name] for v in values], float) for name in SPACE.domains},
        },
        epochs={
            "trial": np.concatenate([np.full(len(row[3]), row[0], object) for row in rows]),
            "step": np.concatenate([np.arange(1.0, len(row[3]) + 1) for row in rows]),
            "val_accuracy": np.concatenate([row[3] for row in rows]),
        },
    )


def repetition(kind: str, searcher: str, number: int, trials: int, size: float) -> dict[str, Any]:
    """One study, and whether what is said of it is true."""
    seeds = np.random.SeedSequence([zlib.crc32(kind.encode()), number, trials])
    rng = np.random.default_rng(seeds)
    true = world(kind, rng, size)
    tables = simulated(true, searcher, number, rng, trials)
    design = design_of(tables)
    found = map_of(fit(design, (0, 1), 0), (0, 1))
    z = np.linspace(0.005, 0.995, 100)
    places = np.repeat(found.place, len(z), axis=0)
    places[:, 2] = np.tile(z, len(found.place))
    truth = final(true, places).reshape(len(found.u), len(found.u), len(z)).mean(2)
    link = design.link
    noise = np.std(design.score[:NOISE], ddof=1)
    inside, _ = region_of(link.to_score(found.draws), float(noise))
    low, high = np.quantile(found.draws, [0.05, 0.95], axis=0) * link.scale + link.shift
    slope, true_slope = interval(slopes(found.draws, found.u), 0.9), slopes(truth[None], found.u)[0]
    effect = interaction_of(found)
    true_effect = bilinear(truth[None], found.u)[0]
    best = truth >= truth.max() - 1e-9
    return {
        "searcher": searcher,
        "trials": trials,
        "region": bool((inside & best).any()),
        "area": float(inside.mean()),
        "band": float(((low <= truth) & (truth <= high)).mean()),
        "width": float((high - low).mean()),
        "slope": bool(slope.low <= true_slope <= slope.high),
        "slope_width": slope.high - slope.low,
        "effect": bool(effect.effect.low <= true_effect <= effect.effect.high),
        "effect_width": effect.effect.high - effect.effect.low,
        "alarm": effect.shown,
        "right_sign": effect.shown and effect.effect.mean * true_effect > 0,
        "regret": float(truth.max() - truth.ravel()[found.draws.mean(0).argmax()]),
    }


def measured(kind: str, searcher: str, repetitions: int, trials: int, size: float, out: Path) -> list[dict[str, Any]]:
    """The repetitions of one kind, taken up where the last run ended."""
    file = out / f"{kind.replace(' ', '-')}-{searcher}-{trials}.parquet"
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist() if file.exists() else []
    while len(rows) < repetitions:
        numbers = range(len(rows), min(len(rows) + CHUNK, repetitions))
        rows += [repetition(kind, searcher, number, trials, size) for number in numbers]
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    return rows[:repetitions]


def told(kind: str, searcher: str, rows: list[dict[str, Any]]) -> str:
    """A row of the table."""
    from scipy.stats import binomtest

    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    mean = {
        key: float(values.mean()) for key, values in columns.items() if values.dtype != object and key != "searcher"
    }
    upper = binomtest(int(columns["alarm"].sum()), len(rows)).proportion_ci(0.95).high
    return (
        f"| {kind} | {searcher} | {mean['region']:.3f} | {mean['area']:.2f} | {mean['band']:.3f} | {mean['width']:.2f} "
        f"| {mean['slope']:.3f} | {mean['slope_width']:.2f} | {mean['effect']:.3f} | {mean['effect_width']:.2f} "
        f"| {mean['alarm']:.3f} (<= {upper:.3f}) | {mean['right_sign']:.3f} | {mean['regret']:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--size", type=float, default=-4.0, help="of the interaction, in logits")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--searchers", nargs="*", default=["random", "tpe"])
    parser.add_argument("--out", type=Path, default=Path("studies/bench-calibration"))
    given = parser.parse_args()
    print(
        "| truth | searcher | region | area | band | width | slope | its width | effect | its width | alarm | right "
        "| regret |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    with threadpool_limits(1):
        for kind in given.kinds:
            for searcher in given.searchers:
                rows = measured(kind, searcher, given.repetitions, given.trials, given.size, given.out)
                print(told(kind, searcher, rows), flush=True)


if __name__ == "__main__":
    main()
