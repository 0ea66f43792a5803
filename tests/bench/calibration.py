"""Is the analysis as sure as it says? Studies with a known truth, simulated and analysed, a thousand of each kind.

    uv run python tests/bench/calibration.py --repetitions 1000

A study has 32 trials under ASHA (the project's own, as replayed over control trials), their points drawn at random or
by Optuna's TPE, and 3 noise trials. The truths are not drawn from the model that is fitted: peaks, plateaus, cliffs,
optima at a border, noise that grows with the strength, no effect; each without an interaction, and some with one. Score
curves rise by a power law whose height and speed depend on the setting; validation images are counted (binomial).

Results are kept as one small Parquet file per kind (`--out`); a run that was broken off goes on. Printed is a table:

- inside: share of the settings truly within epsilon of the best that the sweet spot holds, mean over studies (of these
  settings, taken at random, how many are inside); wanted 0.85-0.95
- best: share of studies whose sweet spot holds the best setting, for truths where one is (where many are as good, which
  is best is a matter of rounding)
- area: mean share of the searched area that the sweet spot takes; near: that of the settings truly within epsilon
- top: share of studies in which the true score at the best guess lies in its 90 % interval; first that of the best
  epoch (a trial's score: the highest of several noisy ones), then the final one without noise, which is lower
- band: share of settings whose true average (of the best epoch; of the final score) lies in the pointwise 90 %
  interval; width: of that interval, in logits
- slope: coverage of the 90 % interval of the ridge's slope, and its mean width
- effect: coverage of the 95 % interval of the interaction, and its mean width, in logits
- shown: share of studies whose interaction is said to be shown (and with the right sign, where there is one), with the
  95 % interval of a binomial share

`--truths development` are those that priors are chosen on, `issue` those that are reported; see `truths.py`.
"""

from __future__ import annotations

import argparse
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits
from truths import DEVELOPMENT, ISSUE, KINDS, World, bump, world

from cvtune import ASHA, Budget, LogUniform, Recipe, Study, Uniform, space
from cvtune.analysis.design import Link, design_of
from cvtune.analysis.response import fit
from cvtune.analysis.surface import Map, bilinear, interaction_of, interval, map_of, region_of, slopes
from cvtune.analysis.tables import Tables
from cvtune.controls import _Asha

EPOCHS, TRIALS, NOISE = 9, 32, 3
IMAGES = 1000  # for validation
RATES = 40  # learning rates, and curves, that an expected best epoch is the mean of
CHUNK = 25  # repetitions between two writes
SPACE = space(
    {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)}
)


@cache
def study(trials: int) -> Study:
    """What every simulated study is."""
    made = Study(space=SPACE, recipe=Recipe().replace({"max_epochs": EPOCHS}), budget=Budget(trials=trials))
    return made.settled("val_accuracy")


def final(true: World, u: np.ndarray) -> np.ndarray:
    """Logit of the final score without luck at places (M, 3)."""
    curvature, best, mixed = true.rate
    x, y, z = u.T
    return np.asarray(true.final(x, y) + curvature * bump(z, best) + mixed * (x - 0.5) * (z - 0.5))


def averaged(true: World, u: np.ndarray) -> np.ndarray:
    """(G, G) the same averaged over the learning rate, at x, y of `u` (G,); what mixes with x has mean 0."""
    curvature, best, _ = true.rate
    over_rates = -curvature * (best**3 + (1 - best) ** 3) / 3
    return np.asarray(true.final(u[None, :], u[:, None]) + over_rates + np.zeros((len(u), len(u))))


def curves(true: World, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(M, EPOCHS) scores of trials at places (M, 3)."""
    height, by_x, power = true.climb
    epochs = np.arange(1, EPOCHS + 1.0)
    missing = (epochs**-power - EPOCHS**-power) / (1 - EPOCHS**-power)
    lift = height + by_x * u[:, 0] + 0.15 * rng.standard_normal(len(u))
    top = final(true, u) + true.luck(u[:, 0], u[:, 1]) * rng.standard_normal(len(u))
    value = top[:, None] - lift[:, None] * missing
    chance = 1 / (1 + np.exp(-value - 0.03 * rng.standard_normal(value.shape)))
    return rng.binomial(IMAGES, chance) / IMAGES


def reached(true: World, u: np.ndarray, link: Link) -> np.ndarray:
    """(G, G) how much higher than `averaged` the best epoch is expected to be, in logits: mean of RATES curves each.

    The score of a trial is its best epoch, the highest of several noisy scores; that is what the surface is about.
    """
    place = np.stack([np.tile(u, len(u)), np.repeat(u, len(u)), np.zeros(len(u) ** 2)], 1)
    place = np.repeat(place, RATES, axis=0)
    place[:, 2] = np.tile((np.arange(RATES) + 0.5) / RATES, len(u) ** 2)
    best = link.raw(curves(true, place, np.random.default_rng(0)).max(1))
    return np.asarray((best - final(true, place)).reshape(len(u), len(u), RATES).mean(2))


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
    rows += [(f"n{k}", "noise", default, curves(true, default[None], rng)[0]) for k in range(NOISE)]
    for k in range(trials):
        u = sampler.ask()
        scores = curves(true, u[None], rng)[0]
        scores = scores[: asha.train(scores, float(u[:2].mean()), 0)]
        sampler.tell(scores)
        rows.append((f"s{k}", "search", u, scores))
    values = [SPACE.pick(dict(zip(SPACE.domains, row[2].tolist(), strict=True))) for row in rows]
    return Tables(
        study(trials),
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
    rng = np.random.default_rng(np.random.SeedSequence([zlib.crc32(kind.encode()), number, trials]))
    true = world(kind, rng, size)
    design = design_of(simulated(true, searcher, number, rng, trials))
    found = map_of(fit(design, (0, 1), 0), (0, 1))
    return {"searcher": searcher, "trials": trials} | judged(
        found, averaged(true, found.u), reached(true, found.u, design.link)
    )


def judged(found: Map, truth: np.ndarray, more: np.ndarray) -> dict[str, Any]:
    """What is said beside what is true (G, G), in logits; `more`: what the best epoch has on top."""
    link = found.design.link
    epsilon = float(np.std(found.design.score[:NOISE], ddof=1))
    inside, _ = region_of(link.to_score(found.draws), epsilon)
    score = 1 / (1 + np.exp(-truth))
    near, best = score >= score.max() - epsilon, truth >= truth.max() - 1e-9
    guess = found.draws.mean(0).argmax()
    low, high = np.quantile(found.draws, [0.05, 0.95], axis=0) * link.scale + link.shift
    held, held_best = ((low <= t) & (t <= high) for t in (truth, truth + more))
    slope, true_slope = interval(slopes(found.draws, found.u), 0.9), slopes(truth[None], found.u)[0]
    effect = interaction_of(found)
    true_effect = bilinear(truth[None], found.u)[0]
    return {
        "inside": float(inside[near].mean()),
        "best": bool((inside & best).any()),
        "area": float(inside.mean()),
        "near": float(near.mean()),
        "top": bool(held_best.ravel()[guess]),
        "top_final": bool(held.ravel()[guess]),
        "band": float(held_best.mean()),
        "band_final": float(held.mean()),
        "width": float((high - low).mean()),
        "slope": bool(slope.low <= true_slope <= slope.high),
        "slope_width": slope.high - slope.low,
        "effect": bool(effect.effect.low <= true_effect <= effect.effect.high),
        "effect_width": effect.effect.high - effect.effect.low,
        "shown": effect.shown,
        "right_sign": effect.shown and effect.effect.mean * true_effect > 0,
        "regret": float(truth.max() - truth.ravel()[guess]),
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
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "searcher"}
    shown = "right_sign" if KINDS[kind].interacts else "shown"
    best = f"{mean['best']:.1%} ({_share(rows, 'best')})" if KINDS[kind].has_place else "-"
    return (
        f"| {kind} | {searcher} | {len(rows)} | {mean['inside']:.1%} (+-{_error(rows, 'inside'):.1%}) | {best} "
        f"| {mean['area']:.0%} of {mean['near']:.0%} | {mean['top']:.1%} ({_share(rows, 'top')}), "
        f"{mean['top_final']:.1%} | {mean['band']:.1%}, {mean['band_final']:.1%}, {mean['width']:.2f} "
        f"| {mean['slope']:.1%}, {mean['slope_width']:.2f} | {mean['effect']:.1%}, {mean['effect_width']:.1f} "
        f"| {mean[shown]:.1%} ({_share(rows, shown)}) | {mean['regret']:.2f} |"
    )


def _share(rows: list[dict[str, Any]], key: str) -> str:
    """The 95 % interval (Clopper & Pearson) of how often something is so."""
    from scipy.stats import binomtest

    low, high = binomtest(sum(row[key] for row in rows), len(rows)).proportion_ci(0.95)
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _error(rows: list[dict[str, Any]], key: str) -> float:
    """Half a 95 % interval of a mean."""
    return float(1.96 * np.std([row[key] for row in rows]) / len(rows) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--size", type=float, default=-4.0, help="of the interaction, in logits")
    parser.add_argument("--truths", choices=["issue", "development"], default="issue")
    parser.add_argument("--kinds", nargs="*", help="only these of the truths")
    parser.add_argument("--searchers", nargs="*", default=["random", "tpe"])
    parser.add_argument("--out", type=Path, default=Path("studies/bench-calibration"))
    given = parser.parse_args()
    kinds = given.kinds or (ISSUE if given.truths == "issue" else DEVELOPMENT)
    print(
        "| truth | searcher | studies | inside | best | area of near | top, final | band, final, width | slope, width "
        "| effect, width | shown | regret |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    with threadpool_limits(1):
        for searcher in given.searchers:
            for kind in kinds:
                rows = measured(kind, searcher, given.repetitions, given.trials, given.size, given.out)
                print(told(kind, searcher, rows), flush=True)


if __name__ == "__main__":
    main()
