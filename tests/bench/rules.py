"""Which rule of the sweet spot holds what truly is near the best? Rules side by side, on the development truths.

    uv run python tests/bench/rules.py --repetitions 25

Printed for each truth, with random points and with TPE: the share of the settings truly within epsilon of the best that
each rule holds (mean over studies), the area that it takes, and how large errors are near the top beside what the model
says ("error": root mean square over settings within 0.3 logits of the best, of the difference to the best setting, as a
multiple of its posterior standard deviation; 1 if the model is as sure as it should be).

`--smooth` leaves out the rough effects of the response.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from calibration import NOISE, TRIALS, averaged, simulated
from threadpoolctl import threadpool_limits
from truths import DEVELOPMENT, world

from cvtune.analysis import response
from cvtune.analysis.design import design_of
from cvtune.analysis.surface import map_of

NEAR_TOP = 0.3  # logits
PRETENDED, FEW = 60, 150  # estimates, and draws around each, of the calibrated rule

Rule = Callable[[np.ndarray, float], np.ndarray]  # draws (S, M) and epsilon -> the settings that are held (M,)


def pointwise(level: float) -> Rule:
    """What is not shown, setting by setting at 1 - level, to be worse than the best guess; 0.1 is what is used."""
    return lambda draws, epsilon: chances(draws, draws.mean(0).argmax(), epsilon) >= level


def chances(draws: np.ndarray, guess: int, epsilon: float) -> np.ndarray:
    """(M,) posterior probability of each setting to be within epsilon of the best guess."""
    return np.asarray((draws >= draws[:, [guess]] - epsilon).mean(0))


def expected_share(level: float) -> Rule:
    """The smallest set that is expected to hold a share `level` of what is within epsilon of the best.

    Of each draw, the settings within epsilon of its own best share a weight of 1. The mean weight of a setting is what
    it adds to the expected share, so the largest come first.
    """

    def held(draws: np.ndarray, epsilon: float) -> np.ndarray:
        near = draws >= draws.max(1, keepdims=True) - epsilon
        weight = (near / near.sum(1, keepdims=True)).mean(0)
        order = np.argsort(-weight, kind="stable")
        enough = int(np.searchsorted(np.cumsum(weight[order]), level - 1e-9)) + 1
        return np.asarray(np.isin(np.arange(len(weight)), order[:enough]))

    return held


def calibrated(level: float) -> Rule:
    """Pointwise, at the level that would hold a share `level` if the mean were true and estimates scattered like draws.

    A parametric bootstrap: it finds a lower level where the top is broad, a higher one where it is narrow.
    """

    def held(draws: np.ndarray, epsilon: float) -> np.ndarray:
        mean = draws.mean(0)
        near, away = mean >= mean.max() - epsilon, draws - mean
        some, around = (away[np.linspace(0, len(draws) - 1, n).astype(int)] for n in (PRETENDED, FEW))
        pretended = [chances(mean + one + around, (mean + one).argmax(), epsilon)[near] for one in some]
        levels = np.arange(0.02, 0.9, 0.01)
        enough = [low for low in levels if np.mean(np.array(pretended) >= low) >= level]
        return pointwise(max(enough, default=levels[0]))(draws, epsilon)

    return held


RULES: Mapping[str, Rule] = {
    "pointwise 10 %": pointwise(0.1),
    "pointwise 15 %": pointwise(0.15),
    "expected share 90 %": expected_share(0.9),
    "calibrated 90 %": calibrated(0.9),
}


def judged(kind: str, searcher: str, number: int) -> np.ndarray:
    """Error near the top, then what each rule holds, then the area that each takes, in one study."""
    rng = np.random.default_rng(np.random.SeedSequence([zlib.crc32(kind.encode()), number, TRIALS]))
    true = world(kind, rng, -4.0)
    design = design_of(simulated(true, searcher, number, rng, TRIALS))
    found = map_of(response.fit(design, (0, 1), 0), (0, 1))
    draws, truth = found.draws.reshape(len(found.draws), -1), averaged(true, found.u).ravel()
    score, epsilon = 1 / (1 + np.exp(-truth)), float(np.std(design.score[:NOISE], ddof=1))
    near = score >= score.max() - epsilon
    held = [rule(design.link.to_score(draws), epsilon) for rule in RULES.values()]
    return np.array([off(draws * design.link.scale, truth), *(h[near].mean() for h in held), *(h.mean() for h in held)])


def off(draws: np.ndarray, truth: np.ndarray) -> float:
    """Errors near the top as a multiple of what the draws (S, M) say, in logits as the truth (M,)."""
    best = truth.argmax()
    top = (truth >= truth.max() - NEAR_TOP) & (np.arange(len(truth)) != best)
    said = (draws - draws[:, [best]])[:, top]
    return float(np.sqrt((((said.mean(0) - (truth - truth[best])[top]) / said.std(0)) ** 2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--smooth", action="store_true", help="without the rough effects")
    given = parser.parse_args()
    if given.smooth:
        response.PRIOR = {**response.PRIOR, response.ROUGH: (1e-6, 0.1)}
    print(f"| truth | error | {' | '.join(RULES)} |\n|{'---|' * (2 + len(RULES))}")
    every = []
    with threadpool_limits(1):
        for kind in DEVELOPMENT:
            rows = [
                np.mean([judged(kind, searcher, n) for n in range(given.repetitions)], 0)
                for searcher in ("random", "tpe")
            ]
            every += rows
            print(_told(kind, rows), flush=True)
    count = len(RULES)
    area = np.mean(every, 0)[1 + count :]
    print(f"| mean area | | {' | '.join(f'{one:.1%}' for one in area)} |")


def _told(kind: str, rows: list[np.ndarray]) -> str:
    """Random, TPE in each cell."""
    cells = [" and ".join(f"{100 * row[i]:.1f}" for row in rows) for i in range(1, 1 + len(RULES))]
    return f"| {kind} | {' and '.join(f'{row[0]:.2f}' for row in rows)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
