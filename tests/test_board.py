"""The board: what each of Ray's schedulers is told and answers, by hand-made reports; what we mended in them."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import numpy as np
import pytest
import ray
from ray.tune.schedulers import pb2 as ray_pb2

from cvtune.board import Board, Verdict, reseed
from cvtune.recipe import Recipe
from cvtune.schedulers import ASHA, FIFO, PB2, PBT, HyperBand, Median, Promotion
from cvtune.sections import Budget
from cvtune.space import IntUniform, LogUniform, Uniform, space
from cvtune.study import Study

STRENGTHS = {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1)}


class Table:
    """A Board with reports by hand. `calls` numbers the questions, `steps` the reports of each trial."""

    def __init__(self, scheduler: Any, trials: int = 40, domains: dict[str, Any] = STRENGTHS, **recipe: Any) -> None:
        base = Recipe().replace({"max_epochs": 9, **recipe})
        self.study = Study(
            recipe=base,
            space=space(domains),
            scheduler=scheduler,
            budget=Budget(trials=trials),
            objective="val_accuracy",
        )
        self.board, self.calls, self.steps = Board(self.study), 0, {}

    def add(self, *names: str, **values: float) -> None:
        for name in names:
            full = {n: d.at(0.5) for n, d in self.study.space.domains.items()}
            full |= {key.replace("_", ".", 1): value for key, value in values.items()}
            self.board.add(name, full, self.next())
            self.steps[name] = 0

    def report(self, name: str, epoch: int, score: float | None, **more: Any) -> Verdict:
        if self.board.pausing:
            self.board.start(name)
        self.steps[name] += 1
        report = {"step": self.steps[name], "epoch": epoch, "val_accuracy": score}
        return self.board.report(name, report, self.next(), **more)

    def fail(self, name: str) -> tuple[dict[str, Any], ...]:
        return self.board.finish(name, None, self.next())

    def next(self) -> int:
        self.calls += 1
        return self.calls - 1


def test_needs_no_ray_cluster_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for scheduler in (
        FIFO(),
        ASHA(),
        Promotion(),
        HyperBand(),
        Median(),
        PBT(synch=False),
        PBT(synch=True),
        PB2(synch=False),
    ):
        table = Table(scheduler, trials=8 if isinstance(scheduler, PBT | PB2) else 40)
        names = [f"{i:05d}" for i in range(8)]
        table.add(*names)
        for epoch in (1, 2, 3):
            for i, name in enumerate(names):
                if name in table.board._live:
                    table.report(name, epoch, 0.1 * i + 0.01 * epoch)
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")
    ray_log = logging.getLogger("ray")
    level = ray_log.level
    ray_log.setLevel(logging.INFO)  # as a running cluster sets it
    assert not logging.getLogger("ray.tune.schedulers.pbt").isEnabledFor(logging.INFO)
    ray_log.setLevel(level)


def test_the_random_state_is_that_of_the_call_alone() -> None:
    study = Study(space=space(STRENGTHS), objective="val_accuracy")
    drawn = []
    for number in (3, 4, 3):
        random.random(), np.random.random(7)
        reseed(study, number)
        drawn.append((random.random(), float(np.random.random())))
    assert drawn[0] == drawn[2] != drawn[1]
    reseed(study.set({"seed": 1}), 3)
    assert random.random() != drawn[0][0]


# --- ASHA


def test_asha_says_rung_value_cutoff_and_arrival() -> None:
    table = Table(ASHA(reduction_factor=2))
    table.add("a", "b", "c")
    assert table.report("a", 1, 0.5) == Verdict(
        "go", (), "promote", "rung 1: val_accuracy = 0.5, no other trial to compare with", 0
    )
    assert table.report("b", 1, 0.4) == Verdict("stop", (), "stop", "rung 1: val_accuracy = 0.4, cutoff 0.5", 1)
    assert table.report("c", 1, 0.45).why == "rung 1: val_accuracy = 0.45, cutoff 0.45"
    assert table.report("a", 2, 0.6).arrival == 0
    assert table.report("a", 3, 0.1) == Verdict("go")  # between two rungs


def test_a_stop_ends_the_trial_on_the_board() -> None:
    table = Table(ASHA(reduction_factor=2))
    table.add("a", "b")
    table.report("a", 1, 0.5)
    assert table.report("b", 1, 0.4).answer == "stop"
    assert table.board.finish("b", {"step": 1, "epoch": 1, "val_accuracy": 0.4}, table.next()) == ()
    assert table.board.needed() == {("a", 1)}
    with pytest.raises(KeyError):
        table.report("b", 2, 0.9)


def test_max_epochs_is_a_stop_but_no_decision() -> None:
    table = Table(ASHA(reduction_factor=2), max_epochs=3)
    table.add("a")
    for epoch in (1, 2):
        table.report("a", epoch, 0.5)
    assert table.report("a", 3, 0.5) == Verdict("stop", (), None, "max_epochs = 3")


def test_a_report_without_a_number_asks_nobody_and_counts_for_nobody() -> None:
    table = Table(ASHA(reduction_factor=2))
    table.add("a", "b", "c")
    for name, score in (("a", math.nan), ("b", None)):
        assert table.report(name, 1, score) == Verdict("go")
        assert table.fail(name) == ()
    assert table.report("c", 1, 0.1).arrival == 0


def test_a_last_report_that_was_not_asked_about_still_counts_at_its_rung() -> None:
    table = Table(ASHA(reduction_factor=2))
    table.add("a", "b")
    table.board.finish("a", {"step": 1, "epoch": 1, "val_accuracy": 0.5}, table.next())
    assert table.report("b", 1, 0.4).answer == "stop"


def test_strong_trials_are_asked_later_and_do_not_count_before() -> None:
    table = Table(ASHA(reduction_factor=3, grace_by_strength=4), max_epochs=27)
    table.add("weak", "weak2", augment_strength=0.0, regularize_strength=0.0)
    table.add("strong", "strong2", augment_strength=1.0, regularize_strength=0.5)  # grace 1 x (1 + 4 x 0.75) = 4
    assert table.report("weak", 1, 0.5).arrival == 0
    for epoch in range(1, 9):  # far worse than the weak one, at rungs 1 and 3
        assert table.report("strong", epoch, 0.01) == Verdict("go")
        assert table.report("strong2", epoch, 0.02) == Verdict("go")
    assert table.report("weak2", 1, 0.4) == Verdict("stop", (), "stop", "rung 1: val_accuracy = 0.4, cutoff 0.5", 1)
    for epoch in range(2, 10):
        verdict = table.report("weak", epoch, 0.6)
    assert verdict.why == "rung 9: val_accuracy = 0.6, no other trial to compare with"
    assert table.report("strong", 9, 0.3).why == "rung 9: val_accuracy = 0.3, cutoff 0.6"
    assert table.board.finish("strong2", {"step": 9, "epoch": 9, "val_accuracy": 0.9}, table.next()) == ()


def test_strengths_that_are_not_searched_come_from_the_recipe() -> None:
    more = {"augment.strength": 1.0, "regularize.strength": None, "max_epochs": 9}
    table = Table(ASHA(grace_by_strength=4), domains={"optim.lr": LogUniform(1e-4, 1)}, **more)
    table.add("a", "b")  # mean 0.5: grace 3
    assert table.report("a", 1, 0.5) == table.report("b", 1, 0.1) == Verdict("go")
    assert [table.report("a", epoch, 0.5).arrival for epoch in (2, 3)] == [None, 0]


def test_strata_compare_within_only() -> None:
    table = Table(ASHA(reduction_factor=2, strata=2))
    table.add("weak", "weak2", augment_strength=0.1, regularize_strength=0.2)
    table.add("strong", "strong2", augment_strength=0.9, regularize_strength=1.0)
    table.add("middle", augment_strength=0.5, regularize_strength=0.5)
    assert table.report("weak", 1, 0.9).action == "promote"
    first = table.report("strong", 1, 0.2)
    assert first.action == "promote" and first.arrival == 0
    assert first.why.startswith("stratum 2 of 2 (mean strength 0.95), rung 1: val_accuracy = 0.2, no other trial")
    assert table.report("strong2", 1, 0.1).why.endswith("rung 1: val_accuracy = 0.1, cutoff 0.2")
    assert table.report("weak2", 1, 0.8).why.endswith("rung 1: val_accuracy = 0.8, cutoff 0.9")
    assert table.report("middle", 1, 0.15).why.startswith("stratum 2 of 2 (mean strength 0.5)")


# --- promotion


def test_promotion_lets_the_best_third_go_on_whenever_they_become_it() -> None:
    table = Table(Promotion())
    table.add("a", "b", "c", "d")
    waits = "rung 1: val_accuracy = 0.5, rank 1 of 1, the best 0 go on"
    assert table.report("a", 1, 0.5) == Verdict("pause", (), None, waits)  # the first one has no advantage
    assert table.report("b", 1, 0.4).answer == "pause"
    assert table.board.choose(0) == "c"
    verdict = table.report("c", 1, 0.45)
    assert (verdict.answer, verdict.why) == ("pause", "rung 1: val_accuracy = 0.45, rank 2 of 3, the best 1 go on")
    assert table.board.choose(0) == "a"  # before the new trial: it is at a rung, and now one of three
    table.board.start("a")
    assert table.board.choose(0) == "d"
    verdict = table.report("d", 1, 0.6)
    assert (verdict.answer, verdict.action) == ("go", "promote")  # better than "a", which is not called back
    assert table.board.choose(0) is None
    assert table.board.waits("b") == "rung 1: val_accuracy = 0.4, rank 4 of 4, the best 1 go on"


def test_promotion_has_rungs_at_whole_epochs_from_the_grace_on() -> None:
    table = Table(Promotion(grace_epochs=2, reduction_factor=1.5))
    table.add("a", "b", "c")
    for name, score in (("a", 0.3), ("b", 0.4), ("c", 0.5)):
        assert table.report(name, 1, score) == Verdict("go")  # no rung before the second epoch
        assert table.report(name, 2, score).answer == ("pause" if name == "a" else "go")
    assert table.report("c", 3, 0.6).why == "rung 3: val_accuracy = 0.6, rank 1 of 1, the best 0 go on"
    asked = [epoch for epoch in range(4, 9) if table.report("b", epoch, 0.4).why]
    assert asked == [5, 7]  # 4.5 and 6.75


def test_promotion_by_a_loss_takes_the_lowest() -> None:
    study = Table(Promotion()).study.model_copy(update={"objective": "val_loss"})
    board = Board(study)
    answers = []
    for call, (name, loss) in enumerate((("a", 0.5), ("b", 0.6), ("c", 0.4))):
        board.add(name, {}, 2 * call)
        board.start(name)
        answers.append(board.report(name, {"step": 1, "epoch": 1, "val_loss": loss}, 2 * call + 1))
    assert [v.answer for v in answers] == ["pause", "pause", "go"]
    assert answers[-1].why == "rung 1: val_loss = 0.4, rank 1 of 3, the best 1 go on"


# --- HyperBand


def hyperband(max_epochs: int = 9) -> Table:
    """The second bracket of HyperBand with its trials running: 5 of them, of which 2 pass its only rung."""
    table = Table(HyperBand(), max_epochs=max_epochs)
    table.add("s0", "s1", "s2")
    assert not table.board.wants_more()
    for name in ("s0", "s1", "s2"):
        assert table.report(name, 1, 0.0) == Verdict("go")  # the first bracket has no rungs
    table.add("a", "b", "c", "d")
    assert table.board.wants_more()
    table.add("e")
    assert not table.board.wants_more()
    return table


def test_hyperband_waits_for_a_bracket_and_ranks_it() -> None:
    table = hyperband()
    for i, name in enumerate("abcd"):
        for epoch in (1, 2):
            assert table.report(name, epoch, 0.1) == Verdict("go")
        text = f"band 1, bracket 2, rung 3: val_accuracy = {0.1 * i + 0.1:.4g}, waits for {4 - i} others"
        assert table.report(name, 3, 0.1 * i + 0.1) == Verdict("pause", (), None, text)
    assert table.board.choose(0) == "e"
    table.report("e", 1, 0.35), table.report("e", 2, 0.35)
    assert table.board.choose(0) is None
    verdict = table.report("e", 3, 0.35)
    text = "band 1, bracket 2, rung 3: val_accuracy = 0.35, rank 2 of 5, the best 2 go on"
    assert (verdict.answer, verdict.action, verdict.why) == ("go", "promote", text)
    assert [(act["act"], act["trial"]) for act in verdict.acts] == [("stop", "a"), ("stop", "b"), ("stop", "c")]
    assert [act["why"][-27:] for act in verdict.acts] == [f"rank {r} of 5, the best 2 go on"[-27:] for r in (5, 4, 3)]
    assert table.board.choose(0) == "d"


def test_hyperband_goes_on_when_the_last_awaited_trial_fails() -> None:
    table = hyperband()
    for name in "abcd":
        for epoch in (1, 2, 3):
            table.report(name, epoch, 0.1 * "abcd".index(name))
    assert [act["trial"] for act in table.fail("e")] == ["a", "b"]
    assert table.board.choose(0) == "c"


def test_hyperband_replaces_no_trial_of_a_bracket_that_was_full() -> None:
    table = hyperband()
    table.fail("a")
    assert not table.board.wants_more()
    table.add("new")
    assert table.board.wants_more()  # it opened the third bracket


def test_hyperband_survives_a_bracket_whose_first_trials_all_fail() -> None:
    table = hyperband()
    for name in "abcde":
        table.fail(name)
    table.add("f", "g")
    table.fail("f"), table.fail("g")
    table.add("h", "i")
    assert table.report("h", 1, 0.1).why.startswith("band 1, bracket 3, rung 1:")


def test_hyperband_trains_its_survivors_to_the_end() -> None:
    """max_epochs = 10 is no power of 3: Ray's would end them at 9."""
    table = hyperband(max_epochs=10)
    for name in "abcde":
        for epoch in (1, 2, 3):
            verdict = table.report(name, epoch, 0.1)
    assert verdict.answer == "go"
    for epoch in range(4, 10):
        assert table.report("e", epoch, 0.5) == Verdict("go")
    assert table.report("e", 10, 0.5) == Verdict("stop", (), None, "max_epochs = 10")


# --- median


def test_median_says_best_median_and_how_many() -> None:
    table = Table(Median(grace_epochs=2, min_trials=2))
    table.add("a", "b", "c")
    for name, scores in (("a", (0.9, 0.4, 0.8)), ("b", (0.9, 0.2, 0.2)), ("c", (0.3, 0.35, 0.39))):
        for epoch, score in enumerate(scores, 1):
            verdict = table.report(name, epoch, score)
            if name != "c" or epoch < 3:
                assert verdict == Verdict("go")
    # means from the grace period on: a (0.4 + 0.8) / 2, b (0.2 + 0.2) / 2; c has 0.39 at best
    why = "epoch 3: val_accuracy = 0.39 at best, median 0.4 of the means of 2 others"
    assert verdict == Verdict("stop", (), "stop", why, 2)


def test_median_counts_a_last_report_once() -> None:
    table = Table(Median(grace_epochs=1, min_trials=1))
    table.add("a", "b")
    table.report("a", 1, 0.2), table.report("a", 2, 0.6)
    table.board.finish("a", {"step": 2, "epoch": 2, "val_accuracy": 0.6}, table.next())
    table.report("b", 1, 0.45)
    assert table.report("b", 2, 0.41).answer == "go"  # 0.45 is above (0.2 + 0.6) / 2, and not above (0.2 + 2 x 0.6) / 3


# --- populations


def population(scheduler: Any, n: int = 4, **more: Any) -> Table:
    table = Table(scheduler, trials=n, **more)
    for i in range(n):
        assert table.board.wants_more() and table.board.pausing
        table.add("abcdefgh"[i])
    assert not table.board.wants_more()
    return table


def test_pbt_takes_over_the_best_and_says_why() -> None:
    table = population(PBT(synch=False, resample=0, step=0.1))
    for name, score in (("a", 0.5), ("b", 0.6), ("c", 0.9)):
        assert table.report(name, 1, score).acts == ()
    verdict = table.report("d", 1, 0.123456)
    (act,) = verdict.acts
    assert verdict.answer == "pause" and verdict.action is None
    assert (act["act"], act["trial"], act["donor"], act["donor_step"]) == ("exploit", "d", "c", 1)
    assert all(abs(value - 0.5) == pytest.approx(0.1) for value in act["values"].values())
    assert act["why"] == (
        "val_accuracy = 0.1235 is among the lowest 1 of 4 (quantile 0.25); takes over c with 0.9 at epoch 1"
    )


def test_a_clone_goes_on_at_its_donors_age() -> None:
    table = population(PBT(synch=False, interval_epochs=2), n=2)
    for name in "ab":
        table.report(name, 1, 0.1)
        table.report(name, 2, 0.9 if name == "a" else 0.95)
    table.report("b", 3, 0.95), table.report("b", 4, 0.95)
    (act,) = [act for epoch in (3, 4) for act in table.report("a", epoch, 0.2).acts]
    assert (act["donor"], act["donor_step"]) == ("b", 4)
    assert {("b", 4), ("a", 4)} <= table.board.needed()


def test_what_a_waiting_clone_must_load_is_needed_until_it_reports() -> None:
    table = population(PBT(synch=False), n=2)
    table.report("a", 1, 0.9), table.report("b", 1, 0.95)
    assert table.report("a", 2, 0.1).acts[0]["donor_step"] == 1
    table.board.finish("b", {"step": 2, "epoch": 2, "val_accuracy": 0.9}, table.next())
    assert table.board.needed() == {("b", 1), ("a", 2)}
    table.board.start("a")
    table.report("a", 2, 0.5)
    assert table.board.needed() == {("a", 3)}


@pytest.mark.parametrize("synch", [False, True])
def test_no_trial_takes_over_one_that_is_over_or_has_no_number(synch: bool) -> None:
    table = population(PBT(synch=synch), n=5)
    table.report("a", 1, 0.99)
    table.fail("a")
    table.report("b", 1, math.inf)
    table.fail("b")
    acts = [act for name, score in (("d", 0.4), ("c", 0.5), ("e", 0.1)) for act in table.report(name, 1, score).acts]
    assert [(act["trial"], act["donor"]) for act in acts] == [("e", "c")]


def test_weights_of_max_epochs_are_not_put_to_a_population() -> None:
    table = population(PBT(synch=False), n=2, max_epochs=2)
    table.report("a", 1, 0.9), table.report("b", 1, 0.95)
    assert table.report("a", 2, 0.1) == Verdict("go")


def test_burn_in_and_interval_are_kept() -> None:
    table = population(PBT(synch=False, interval_epochs=2, burn_in_epochs=3), n=2)
    acted = []
    for epoch in range(1, 9):
        for name in "ab":
            verdict = table.report(name, epoch, 0.1 if name == "b" else 0.2)
            acted += [(act["trial"], epoch) for act in verdict.acts]
    assert acted == [("b", 5), ("b", 7)]  # not at 3: a came first, and was the best of nobody then


def test_a_synchronous_population_does_not_wait_for_a_trial_that_is_over() -> None:
    for over in ("fails", "ends"):
        table = population(PBT(synch=True), n=4)
        for name, score in (("a", 0.5), ("b", 0.6), ("c", 0.9)):
            assert table.report(name, 1, score) == Verdict("pause")
        assert table.board.choose(0) is None or table.board.choose(0) == "d"
        last = {"step": 1, "epoch": 1, "val_accuracy": 0.1}
        acts = table.board.finish("d", None if over == "fails" else last, table.next())
        assert [(act["trial"], act["donor"]) for act in acts] == [("a", "c")]
        assert table.board.choose(0) in ("a", "b", "c")


def test_a_synchronous_population_of_one_that_is_left_goes_on_alone() -> None:
    table = population(PBT(synch=True), n=2)
    table.report("a", 1, 0.5)
    assert table.fail("b") == () and table.board.choose(0) == "a"


def test_the_youngest_goes_on_first_and_of_equals_the_one_asked_least() -> None:
    table = population(PBT(synch=False), n=2)
    table.report("a", 1, 0.9), table.report("b", 1, 0.95)
    table.board.pause_trial(table.board._live["b"])
    assert table.report("a", 2, 0.1).acts  # back to epoch 1 as a clone of b
    assert table.board.choose(0) == "b"


# --- PB2


LR = {"optim.lr": LogUniform(1e-4, 1.0), "augment.strength": Uniform(0, 1), "augment.mixup": IntUniform(0, 8)}


def bandit(choose: Any, monkeypatch: pytest.MonkeyPatch, scores: Any = None) -> list[dict[str, Any]]:
    """Acts of a PB2 population whose Gaussian process is replaced by `choose`."""
    seen: list[Any] = []

    def select(x: np.ndarray, y: Any, current: Any, newpoint: Any, bounds: Any, num_f: int) -> Any:
        seen.append((x, bounds))
        return choose(bounds)

    monkeypatch.setattr(ray_pb2, "_select_config", select)
    table = population(PB2(synch=False), n=4, domains=LR)
    acts = []
    for epoch in range(1, 6):
        for i, name in enumerate("abcd"):
            acts += table.report(name, epoch, 0.1 * i + 0.02 * epoch).acts
    assert seen and all(x.dtype == float for x, _ in seen)
    assert all(bounds == {"optim.lr": [-4.0, 0.0], "augment.strength": [0.0, 1.0], "augment.mixup": [0.0, 8.0]}
               for _, bounds in seen)  # fmt: skip
    logs = np.concatenate([x[:, 2] for x, _ in seen])
    assert logs.min() >= -4 and logs.max() <= 0
    return [act for act in acts if act["act"] == "exploit"]


def test_pb2_maps_coordinates_back_to_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = bandit(lambda bounds: np.array([-1.5, 0.3, 4.6], np.float32), monkeypatch)
    values = acts[-1]["values"]
    assert values == {"optim.lr": pytest.approx(10**-1.5), "augment.strength": 0.3, "augment.mixup": 5}
    assert [type(value) for value in values.values()] == [float, float, int]


def test_pb2_stays_in_the_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    low = bandit(lambda bounds: np.array([-4.0000005, -1e-7, -0.4], np.float32), monkeypatch)[-1]["values"]
    assert low == {"optim.lr": 1e-4, "augment.strength": 0.0, "augment.mixup": 0}
    high = bandit(lambda bounds: np.array([1e-7, 1.0000001, 8.4], np.float32), monkeypatch)[-1]["values"]
    assert high == {"optim.lr": 1.0, "augment.strength": 1.0, "augment.mixup": 8}


def test_pb2_draws_anew_where_its_process_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(bounds: Any) -> Any:
        raise np.linalg.LinAlgError("not positive definite")

    acts = bandit(singular, monkeypatch)
    assert len({act["values"]["optim.lr"] for act in acts[-3:]}) > 1
    assert all(LR[name].contains(value) for act in acts for name, value in act["values"].items())


def real_pb2(on_record: Any = lambda call: ()) -> tuple[Table, list[tuple[int, dict[str, Any]]]]:
    table, acts = population(PB2(synch=False), n=4, domains=LR), []
    for epoch in range(1, 5):
        for i, name in enumerate("abcd"):
            call = table.calls
            verdict = table.report(name, epoch, 0.1 * i + 0.02 * epoch, on_record=on_record(call))
            acts += [(call, act) for act in verdict.acts]
    return table, acts


def test_pb2_learns_from_exactly_the_values_in_force() -> None:
    table, acts = real_pb2()
    learned = table.board._inner.data
    for _, act in acts[1:]:
        there = learned[learned["Trial"] == f"cvtune_{act['trial']}"]
        assert (there["augment.strength"] == act["values"]["augment.strength"]).any()
        assert (there["augment.mixup"] == act["values"]["augment.mixup"]).any()
        assert (there["optim.lr"] == math.log10(act["values"]["optim.lr"])).any()
    assert len({act["values"]["optim.lr"] for _, act in acts}) == len(acts) >= 3


def test_pb2_first_copies_values_to_the_last_digit() -> None:
    table = Table(PB2(synch=False), trials=4, domains=LR)
    for name, lr in (("a", 0.01), ("b", 0.03), ("c", 0.7), ("d", 0.0003)):
        table.add(name, optim_lr=lr)
    acts = [act for i, name in enumerate("bcda") for act in table.report(name, 1, 0.5 + i * (-1) ** i / 10).acts]
    assert acts and all(
        act["values"]["optim.lr"] == {"a": 0.01, "b": 0.03, "c": 0.7, "d": 0.0003}[act["donor"]] for act in acts
    )


def test_pb2_learns_once_from_a_report_that_is_put_again() -> None:
    table = population(PB2(synch=True), n=4, domains=LR)
    for i, name in enumerate("abc"):
        table.report(name, 1, 0.1 * i)
    assert table.fail("d")[0]["trial"] == "a"
    assert len(table.board._inner.data) == 3


def test_values_on_record_win_in_replay_so_that_another_machine_may_round_otherwise() -> None:
    _, here = real_pb2()
    shifted = [(call, {**act, "values": {**act["values"], "augment.strength": 0.123}}) for call, act in here]
    _, there = real_pb2(on_record=lambda call: [act for c, act in shifted if c == call])
    assert there == shifted
