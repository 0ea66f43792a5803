"""Folds: how images are divided, what a trial over them reports, and what is decided when."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvtune import checkpoint, confirm, folds
from cvtune.data import Dataset, Part, open_dataset
from cvtune.data.folds import Folds
from cvtune.epoch import FOLDS, Epoch
from cvtune.errors import ConfigError, DataError
from cvtune.evidence import Evidence
from cvtune.history import TrialRecord
from cvtune.journal import read
from cvtune.noise import score
from cvtune.phases import Phases
from cvtune.recipe import Recipe
from cvtune.sections import Source
from cvtune.space import IntUniform, space
from cvtune.study import Study, for_data
from tests.test_ledger import HERE, Drive, numbers

TINY = Recipe().replace(
    {
        "data.image_size": 8,
        "data.batch_size": 64,
        "data.train_fraction": 0.2,
        "data.folds": 3,
        "model.width": 4,
        "max_epochs": 2,
        "augment.flip": "none",
    }
)
TERMS = folds.Terms(seed=0, objective="val_accuracy", better="max")
TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory", "image_ms")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return open_dataset(Source(source="digits"), TINY.data, tmp_path_factory.mktemp("cache"), None, 1)


def dataset(labels: np.ndarray, groups: np.ndarray | None, task: Any = "classify") -> Dataset:
    """Image i is one pixel of value i; the last fifth of the images is the val part."""
    cut = len(labels) * 4 // 5
    images = [np.full((1, 1, 3), i, np.uint8) for i in range(len(labels))]
    rows = (slice(0, cut), slice(cut, None), slice(0, 0))
    parts = [Part(images[r], labels[r], groups=None if groups is None else groups[r]) for r in rows]
    names = tuple(f"c{i}" for i in range(int(labels.max()) + 1))
    return Dataset(names, *parts, fingerprint="", corrupt=(), notices=(), store=None, task=task)


# --- the division


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("count", "seed"), [(2, 0), (5, 1), (7, 2)])
def test_every_image_is_validated_on_once_and_classes_and_groups_are_kept(grouped: bool, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, 250, p=[0.6, 0.3, 0.1])
    groups = rng.integers(0, 80, 250) if grouped else None
    data = dataset(labels, groups)
    made = Folds(data, count, seed)
    validated: list[int] = []
    for number in range(count):
        fold = made[number]
        train, val = (
            [int(part.images[i][0, 0, 0]) for i in range(len(part.images))] for part in (fold.train, fold.val)
        )
        assert sorted(train + val) == list(range(250))
        assert (labels[train] == fold.train.labels).all() and (labels[val] == fold.val.labels).all()
        assert fold.test is data.test
        shares = np.bincount(fold.val.labels, minlength=3) - np.bincount(labels) / count
        assert (abs(shares) <= (8 if grouped else 1)).all(), shares
        if groups is not None:
            assert not set(groups[train]) & set(groups[val])
        validated += val
    assert sorted(validated) == list(range(250))
    assert (Folds(data, count, seed).owner == made.owner).all()
    assert (Folds(data, count, seed + 10).owner != made.owner).any()


def test_a_class_that_cannot_be_in_each_fold_is_named() -> None:
    labels = np.repeat([0, 1], [40, 3])
    with pytest.raises(DataError, match=r"data\.folds = 4: class 'c1' has 3 training and validation images"):
        Folds(dataset(labels, None), 4, 0)
    Folds(dataset(labels, None, "segment"), 4, 0)  # images show other classes beside the one that they are sorted by
    with pytest.raises(DataError, match=r"class 'c1' has 20 .*groups stay whole"):
        Folds(dataset(np.repeat([0, 1], [30, 20]), np.repeat([*range(10), 10, 11], [*[3] * 10, 10, 10])), 3, 0)


# --- a trial


def test_each_fold_trains_anew_and_its_last_report_sums_up(digits: Dataset) -> None:
    run = folds.Run(TINY, digits, TERMS)
    epochs, firsts = [], []
    for epoch in folds.train(run):
        epochs.append(epoch)
        firsts.append(next(run.inner.model.module.parameters()).detach().clone())
    assert [(e.step, e.epoch, e.fold, e.folds) for e in epochs] == [
        *((1, 1, 1, 0), (2, 2, 1, 1), (3, 1, 2, 1), (4, 2, 2, 2), (5, 1, 3, 2), (6, 2, 3, 3)),
    ]
    best = [max(e.val_accuracy for e in epochs if e.fold == fold) for fold in (1, 2, 3)]
    assert [e.folds_mean for e in epochs[::2]] == [None] * 3
    assert [e.folds_mean for e in epochs[1::2]] == [np.mean(best[:n]) for n in (1, 2, 3)]
    assert epochs[1].folds_sd is None and epochs[5].folds_sd == np.std(best, ddof=1)
    assert epochs[5].fold_scores == best
    assert epochs[0].lr == epochs[2].lr == epochs[4].lr  # the rate schedule is that of each fold
    assert not torch.allclose(firsts[0], firsts[2], atol=0.05)  # other weights at the start
    scores, stored = folds.score_test(run)
    assert run.data.test is digits.test and len(run.data.val.labels) == (run.folds.owner == 2).sum()
    assert len(stored["labels"]) == len(digits.test.labels) and 0 <= scores["test_accuracy"] <= 1


@pytest.mark.parametrize("after", [2, 3])
def test_a_trial_is_taken_up_in_its_fold_as_if_it_had_never_stopped(
    digits: Dataset, tmp_path: Path, after: int
) -> None:
    def plain(epoch: Epoch) -> dict[str, Any]:
        return {name: value for name, value in epoch.numbers().items() if name not in TIMES}

    whole, saved = folds.Run(TINY, digits, TERMS), tmp_path / "checkpoint"
    expected = []
    for epoch in folds.train(whole):
        expected.append(plain(epoch))
        if epoch.step == after:
            checkpoint.save(saved, whole.state_dict(), epoch.numbers())
        if epoch.step == 4:
            break
    again = folds.Run(TINY, digits, TERMS)
    again.load_state_dict(checkpoint.load(saved)[0])
    assert again.step == after
    for epoch, known in zip(folds.train(again), expected[after:], strict=False):
        assert plain(epoch) == known


class Inner:
    """A module with a `Run` and `train` whose scores are given."""

    scores: tuple[tuple[float, ...], ...] = ()

    class Run:
        def __init__(self, recipe: Recipe, data: Dataset, **_: Any) -> None:
            self.step, self.epoch = 0, 0
            Inner.open += 1

        def close(self) -> None:
            Inner.open -= 1

    @classmethod
    def train(cls, run: Any, stop: Any) -> Any:
        scores = cls.scores[Inner.begun]
        Inner.begun += 1
        for value in scores:
            if stop():
                return
            run.step, run.epoch = run.step + 1, run.epoch + 1
            some: dict[str, Any] = dict.fromkeys((f.name for f in dataclasses.fields(Epoch)), 0.5)
            yield Epoch(**some | {"step": run.step, "epoch": run.epoch, "val_accuracy": value})

    begun = open = 0


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> type[Inner]:
    monkeypatch.setattr(folds, "own_train", Inner)
    Inner.begun = Inner.open = 0
    return Inner


def test_patience_ends_a_fold_and_not_the_trial(digits: Dataset, inner: type[Inner]) -> None:
    inner.scores = ((0.5, 0.4, 0.9, 0.9), (0.1, 0.2, 0.3, 0.4), (0.6, 0.6, 0.6, 0.6))
    run = folds.Run(TINY.replace({"max_epochs": 4, "patience": 1}), digits, TERMS)
    epochs = list(folds.train(run))
    assert [(e.fold, e.epoch) for e in epochs] == [(1, 1), (1, 2), *((2, k) for k in (1, 2, 3, 4)), (3, 1), (3, 2)]
    assert epochs[-1].fold_scores == [0.5, 0.4, 0.6] and inner.open == 1
    run.close()
    assert inner.open == inner.begun - 3 == 0
    inner.begun = 0
    low = folds.Run(TINY.replace({"max_epochs": 4}), digits, folds.Terms(0, "val_accuracy", "min"))
    assert list(folds.train(low))[-1].fold_scores == [0.4, 0.1, 0.6]


def test_a_stop_breaks_off_in_the_fold(digits: Dataset, inner: type[Inner]) -> None:
    inner.scores = ((0.5, 0.4),) * 3
    asked = iter([False, False, False, True])
    run = folds.Run(TINY, digits, TERMS)
    assert [e.step for e in folds.train(run, lambda: next(asked))] == [1, 2, 3]
    assert (run.fold, run.is_over) == (1, False)


def test_a_loop_of_the_users_own_runs_over_folds_and_knows_nothing_of_them(digits: Dataset) -> None:
    recipe = TINY.replace({"train.loop": "python:tests.loops_under_test:good", "max_epochs": 1})
    run = folds.Run(recipe, digits, TERMS)
    epochs = list(folds.train(run))
    assert [(e.step, e.epoch, e.fold) for e in epochs] == [(1, 1, 1), (2, 1, 2), (3, 1, 3)]
    again = folds.Run(recipe, digits, TERMS)
    again.load_state_dict(run.state_dict())
    assert again.fold == 2 and list(folds.train(again)) == [] and "test_accuracy" in folds.score_test(again)[0]


# --- a study

STUDY = for_data("digits").set(
    {
        "objective": "val_accuracy",
        "data.folds": 3,
        "max_epochs": 2,
        "budget.trials": 6,
        "noise_seeds": 2,
        "confirm.top": 1,
        "confirm.seeds": 2,
    }
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheduler.name": "pbt", "budget.trials": 8}, r"data\.folds = 3 with scheduler\.name = pbt: .*weights"),
        ({"scheduler.name": "pb2", "budget.trials": 8}, r"data\.folds = 3 with scheduler\.name = pb2"),
        ({"scheduler.grace_epochs": 4}, r"scheduler\.grace_epochs = 4 is above data\.folds = 3"),
        ({"data.folds": 0}, r"data\.folds"),
    ],
)
def test_what_cannot_be_with_folds_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        STUDY.set(settings)


def test_one_fold_is_none_folds_are_not_searched_and_candidates_have_the_studys() -> None:
    assert STUDY.set({"data.folds": 1}) == STUDY.set({"data.folds": None})
    with pytest.raises(ConfigError, match=r"'data\.folds' cannot be searched"):
        space({"data.folds": IntUniform(2, 5)})
    with pytest.raises(ConfigError, match=r"candidates: 'mine' has data\.folds = 5, the study 3"):
        Study.model_validate(STUDY.model_dump() | {"candidates": {"mine": Recipe().replace({"data.folds": 5})}})
    assert (STUDY.recipe.total_epochs, STUDY.recipe.rounds) == (6, 3)


class FoldsDrive(Drive):
    """A toy study over folds: the score of a fold is that of the values, plus what makes the fold easy or hard."""

    EASE = (0.3, 0.0, -0.3)

    def train(self, record: TrialRecord) -> None:
        step = record.steps + 1
        fold, epoch = (step - 1) // 2, 1 + (step - 1) % 2
        known = list(record.epochs[-1]["fold_scores"] or []) if record.epochs and epoch == 1 else []
        known = known or next((list(e["fold_scores"]) for e in reversed(record.epochs) if e["fold_scores"]), [])
        own = self.quality(record) + self.EASE[fold] + 0.01 * epoch
        told: dict[str, Any] = {"fold": fold + 1, "folds": len(known), **dict.fromkeys(FOLDS[2:])}
        if epoch == 2:
            scores = [*known, own]
            told |= {"folds": len(scores), "folds_mean": float(np.mean(scores)), "fold_scores": scores}
        self.reports += 1
        self.ledger.report(record.trial, numbers(step, epoch, own, **told), HERE)


@pytest.mark.parametrize("which", ["asha", "promotion", "hyperband", "median", "tpe"])
def test_only_the_end_of_a_fold_is_decided_on_and_a_resumed_study_decides_the_same(tmp_path: Path, which: str) -> None:
    more: dict[str, Any] = (
        {"scheduler.name": which} if which != "tpe" else {"searcher.name": "tpe", "searcher.startup": 2}
    )
    study = STUDY.set({**more, "budget.trials": 8})
    history = FoldsDrive(tmp_path, study, {}).run()
    assert history.complete is False and all(r.reason for r in history.trials.values())
    for event in read(tmp_path):
        if event["kind"] == "epoch" and event["folds_mean"] is None:
            assert event.get("call") is None and event["answer"] == "go" and event["reason"] is None
    stopped = [r for r in history.of("search") if r.reason == "stopped_scheduler"]
    assert all(r.steps in (2, 4) for r in stopped)
    assert stopped or which in ("median", "hyperband")
    assert {r.steps for r in history.of("noise", "confirm")} == {6}
    FoldsDrive(tmp_path, study, {}).run()  # `recover` puts everything again and compares


def test_ranks_and_scores_go_by_the_folds_finished_and_not_by_an_easy_one(tmp_path: Path) -> None:
    drive = FoldsDrive(tmp_path, STUDY, {})
    history = drive.run()
    (first, report), *_ = ranked = history.ranked(STUDY)
    assert report["folds"] == 3 and score(STUDY, first) == report["folds_mean"]
    assert [e["folds"] for _, e in ranked] == sorted((e["folds"] for _, e in ranked), reverse=True)
    early = max(r.epochs[0]["val_accuracy"] for r in history.trials.values())
    assert early > float(STUDY.score(report) or 0)  # the first fold is easy: alone it would have won
    evidence = Evidence(STUDY)
    for event in read(tmp_path):
        evidence.observe(event)
    assert all(list(seen.reports) in ([1], [2], [3]) for seen in evidence.seen if seen.outcome != "running")


def test_a_confirming_trial_counts_by_the_last_epoch_of_each_fold(tmp_path: Path) -> None:
    drive = FoldsDrive(tmp_path, STUDY, {})
    history = drive.run()
    assert Phases(drive.ledger).over is None
    record = history.of("confirm")[0]
    ends = [e["val_accuracy"] for e in record.epochs if e["epoch"] == 2]
    assert confirm.final(STUDY, record) == np.mean(ends) and len(ends) == 3
    winner = confirm.choose_winner(STUDY, history)
    assert winner is not None and len(winner["scores"]["default"]) == 2  # the noise trials, which trained as it does
