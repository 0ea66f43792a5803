"""The replay plays by the clock and the table it is given: checked by hand on tables of a few rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curves import EPOCHS, MORE_SEEDS, RECIPES, SEEDS, SETTINGS, TOP, values_of
from replay import SIDES, Played, Side, Table, hinted, interval, play, regrets, study_of

from cvtune.space import LogUniform, Uniform, space
from cvtune.study import SWEET_SPOT

PROMOTION = Side({"scheduler.name": "promotion"})
FIFO = Side({"scheduler.name": "fifo"})
SPACE = space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)})


def table(qualities: list[float], seconds: list[float], epochs: int = 3) -> Table:
    """Rows at even distances, all of whose curves rise alike to a quality; each epoch of a row takes its seconds."""
    count = len(qualities)
    values = [SPACE.pick({"augment.strength": (i + 0.5) / count, "optim.lr": (i + 0.5) / count}) for i in range(count)]
    rise = np.arange(1, epochs + 1) / epochs
    scores = np.array(qualities)[:, None, None] * rise
    return Table.of(SPACE, values, scores, np.broadcast_to(np.array(seconds)[:, None, None], scores.shape))


def test_two_workers_by_hand() -> None:
    """Three rows of two epochs of 2 s: reports at 2, 2, 4, 4, then one row is left, at 6 and 8."""
    game = play(table([0.5, 0.5, 0.5], [2, 2, 2], 2), FIFO, workers=2, seed=0, epochs=100)
    assert game.clock.tolist() == [2, 2, 4, 4, 6, 8]
    alone = play(table([0.5, 0.5, 0.5], [2, 2, 2], 2), FIFO, workers=1, seed=0, epochs=100)
    assert alone.clock.tolist() == [2, 4, 6, 8, 10, 12]


def test_a_slow_row_holds_its_worker_only() -> None:
    """Rows of 1 s and 10 s for an epoch: the fast one's reports come at 1 and 2, the slow one's at 10 and 20."""
    game = play(table([0.5, 0.9], [1, 10], 2), FIFO, workers=2, seed=0, epochs=100)
    assert game.clock.tolist() == [1, 2, 10, 20]
    assert game.regret == pytest.approx([0.4, 0.4, 0.4, 0.0])  # at 10 s the slow one stands at 0.45, below 0.5


def test_every_row_is_tried_once_and_the_goal_is_the_best_rows_turn() -> None:
    rows = table([0.3] * 13 + [0.9] + [0.3] * 6, [1] * 20)
    game = play(rows, FIFO, workers=1, seed=3, epochs=100)
    assert len(game.regret) == 20 * 3
    turn = int(np.flatnonzero(game.regret == 0)[0])  # 0.3 at its first epoch ties with the others' last: not yet best
    assert game.reached == turn + 1
    assert np.all(game.regret[turn:] == 0)


@pytest.mark.parametrize("name", list(SIDES))
def test_curves_that_do_not_cross_lead_everybody_to_the_best_row(name: str) -> None:
    rows = table([i / 20 for i in range(1, 21)], [1] * 20, 9)
    game = play(rows, SIDES[name], workers=4, seed=1, epochs=1000)
    assert game.regret[-1] == 0
    assert len(game.regret) < 20 * 9  # the worse ones were stopped


def test_promotion_by_hand() -> None:
    """Nine rows, one worker, rungs at 1 and 3: the best three of nine go on to 3 epochs, the best of those to 9.

    A trial is let past a rung early when it leads among the first ones; those that had come by then are no more than
    a third of the nine. So 9 + 3 x 2 + 6 epochs are the least, and each early leader that is overtaken costs more.
    """
    rows = table([i / 9 for i in range(1, 10)], [1] * 9, 9)
    games = [play(rows, PROMOTION, workers=1, seed=seed, epochs=1000) for seed in range(10)]
    assert all(game.regret[-1] == 0 for game in games)
    assert min(len(game.regret) for game in games) == 9 + 3 * 2 + 6
    assert max(len(game.regret) for game in games) < 9 * 9


def test_our_asha_is_rays_where_no_option_is_set() -> None:
    rows = table([i / 20 for i in range(1, 21)], [1 + i % 3 for i in range(20)], 9)
    theirs, ours = (
        play(rows, SIDES[name], workers=4, seed=2, epochs=1000) for name in ("ray", "default-without-hints")
    )
    assert np.array_equal(theirs.regret, ours.regret)
    assert np.array_equal(theirs.clock, ours.clock)


def test_only_ours_is_told_what_the_built_in_study_says_of_the_same_ranges() -> None:
    told = hinted(SPACE).domains
    assert told["augment.strength"] == SWEET_SPOT.domains["augment.strength"] != SPACE.domains["augment.strength"]
    assert told["optim.lr"] == SPACE.domains["optim.lr"]  # another range than the built-in one
    rows = table([i / 20 for i in range(1, 21)], [1] * 20)
    spaces = {name: study_of(rows, side, 0).space for name, side in SIDES.items()}
    assert [name for name in spaces if spaces[name] == SPACE] == ["ray", "ray-tpe", "default-without-hints"]


def test_what_is_picked_is_judged_by_the_truth() -> None:
    """A row that looked better by luck is picked, and its regret is that of its mean over seeds."""
    scores = np.array([[[0.8], [0.8]], [[0.9], [0.5]]])
    rows = Table.of(SPACE, [{"augment.strength": x, "optim.lr": 0.01} for x in (0.2, 0.8)], scores, np.ones((2, 2, 1)))
    assert regrets(rows, [(0, 0.8), (1, 0.9), (0, 0.85)]) == pytest.approx([0.0, 0.1, 0.1])


def test_a_goal_that_is_lost_again_was_not_reached() -> None:
    def reached(regret: list[float]) -> int:
        return Played(np.array(regret), np.arange(len(regret), dtype=float)).reached

    assert reached([0.0, 0.0]) == 1
    assert reached([0.3, 0.01, 0.2, 0.0, 0.0]) == 4
    assert reached([0.3, 0.3]) == 2  # never: all that was trained


def test_the_interval_holds_the_mean_and_narrows_to_a_constant() -> None:
    assert interval(np.log(np.full(5, 3.0))) == pytest.approx((3.0, 3.0, 3.0))
    mean, low, high = interval(np.log(np.array([1.0, 2.0, 4.0, 8.0])))
    assert low < mean < high and mean == pytest.approx(2**1.5)


@pytest.mark.parametrize("source", list(SETTINGS))
def test_a_recorded_table_is_whole_and_of_the_draws_that_are_made_today(source: str) -> None:
    recorded = Table.read(Path(__file__).with_name("tables") / f"{source}.parquet")
    assert recorded.scores.shape == (RECIPES, SEEDS + MORE_SEEDS, EPOCHS)
    runs = np.isfinite(recorded.scores)
    assert runs[:, :SEEDS].all() and runs[:, SEEDS:].all(axis=(1, 2)).sum() == TOP
    for ours, drawn in zip(recorded.values, values_of(source), strict=True):
        assert {name: pytest.approx(value, rel=1e-5) for name, value in drawn.items()} == dict(ours)
    assert (recorded.seconds[runs] > 0).all() and (recorded.scores[runs] <= 1).all()
