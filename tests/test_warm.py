"""Warm start: what of an older study counts, and what is said about it."""

from pathlib import Path
from typing import Any

import pytest

from cvtune.errors import ConfigError
from cvtune.journal import Journal
from cvtune.recipe import Recipe
from cvtune.sections import Source
from cvtune.space import LogUniform, Uniform, space
from cvtune.study import Study
from cvtune.suggest import suggester
from cvtune.warm import warm_start

BASE = Recipe().replace({"max_epochs": 9})
OLD = Study(
    name="old",
    objective="val_accuracy",
    recipe=BASE,
    space=space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1e-1)}),
)
NEW = Study(
    name="new", recipe=BASE, space=space({"augment.strength": Uniform(0, 0.8), "optim.lr": LogUniform(1e-3, 1)})
)

TRIALS: list[tuple[str, dict[str, Any], list[float | None], str | None]] = [
    ("noise", {}, [0.3, 0.5], "completed"),
    ("search", {"augment.strength": 0.6, "optim.lr": 0.01}, [0.5, 0.8, 0.7], "completed"),
    ("search", {"augment.strength": 0.5, "optim.lr": 0.02}, [0.4, 0.6], "stopped_scheduler"),
    ("search", {"augment.strength": 0.9, "optim.lr": 0.01}, [0.9], "completed"),  # strength outside
    ("search", {"augment.strength": 0.1, "optim.lr": 0.0005}, [0.9], "completed"),  # rate outside
    ("search", {"augment.strength": 0.2, "optim.lr": 0.05}, [0.2, None], "diverged"),
    ("search", {"augment.strength": 0.3, "optim.lr": 0.05}, [], None),
    ("control", {"augment.strength": 0.4, "optim.lr": 0.01}, [0.7], "stopped_patience"),
    ("search", {"augment.strength": 0.6, "optim.lr": 0.01}, [0.79], "completed"),  # the second one's point again
    ("confirm", {}, [0.99], "completed"),
]


def write(folder: Path, study: Study = OLD, trials: list[Any] = TRIALS, exploited: bool = False) -> Path:
    (folder / "journal").mkdir(parents=True)
    (folder / "study.json").write_text(study.to_json({}))
    journal = Journal(folder / "journal" / "000001.jsonl")
    for index, (role, values, scores, reason) in enumerate(trials):
        trial = {"trial": str(index), "index": index, "number": index, "role": role, "label": "", "values": values}
        recipe = study.trial(index, values).model_dump(mode="json", exclude_defaults=True)
        journal.append("trial", {**trial, "recipe": recipe, "waiting": False})
        for step, score in enumerate(scores, 1):
            ended = reason if step == len(scores) else None
            acts = []
            if exploited and step == 1:
                act = {"act": "exploit", "trial": str(index), "donor": "0", "donor_step": 1}
                acts = [{**act, "values": {"augment.strength": 0.7}, "why": ""}]
            event = {"trial": str(index), "step": step, "epoch": step, "attempt": 0, "segment": 0, "answer": "go"}
            event |= {"val_accuracy": score, "val_loss": 1 - (score or 0), "seconds": 1.0, "parameters": 50}
            journal.append("epoch", {**event, "reason": ended, "message": "", "acts": acts})
    journal.close()
    return folder


def test_what_fits_becomes_prior_observations_and_first_points(tmp_path: Path) -> None:
    mine = ({"augment.strength": 0.05}, {"augment.strength": 0.6, "optim.lr": 0.01})
    warm, notices = warm_start(NEW.model_copy(update={"points": mine}), write(tmp_path / "old"), best=2)
    seen = [(p.values["augment.strength"], p.values["optim.lr"], p.score, p.epochs, p.complete) for p in warm.prior]
    assert seen == [
        (0.3, BASE.optim.lr, 0.5, 2, True),  # the noise trial: the base recipe
        (0.6, 0.01, 0.8, 3, True),
        (0.5, 0.02, 0.6, 2, False),
        (0.4, 0.01, 0.7, 1, True),
        (0.6, 0.01, 0.79, 1, True),
    ]
    assert warm.points == (mine[1], {"augment.strength": 0.4, "optim.lr": 0.01}, mine[0])
    assert notices == [
        "5 of 9 trials of 'old' are learned from; its best 2 are tried first",
        "1 left out: outside this study's space (augment.strength)",
        "1 left out: outside this study's space (optim.lr)",
        "1 left out: failed",
        "1 left out: ended without a score",
    ]
    assert warm.model_copy(update={"prior": (), "points": ()}) == NEW.settled("val_accuracy")


@pytest.mark.parametrize("searcher", ["random", "grid", "sobol", "tpe", "gp"])
def test_a_study_started_warm_can_be_searched(tmp_path: Path, searcher: str) -> None:
    warm, _ = warm_start(NEW.set({"searcher.name": searcher}), write(tmp_path / "old"))
    values = suggester(warm).suggest(0, warm.points[0])
    assert values == {"augment.strength": 0.6, "optim.lr": 0.01}
    assert Study.model_validate_json(warm.model_dump_json()) == warm


def test_for_losses_the_lowest_score_is_the_best(tmp_path: Path) -> None:
    by_loss = {"objective": "val_loss"}
    old = write(tmp_path / "old", OLD.model_copy(update=by_loss))
    warm, _ = warm_start(NEW.model_copy(update=by_loss), old, best=1)
    assert [p.score for p in warm.prior] == pytest.approx([0.5, 0.2, 0.4, 0.3, 0.21])
    assert warm.points == ({"augment.strength": 0.6, "optim.lr": 0.01},)


def test_a_name_that_was_not_searched_has_the_older_base_value(tmp_path: Path) -> None:
    study = NEW.model_copy(update={"space": space({"regularize.strength": Uniform(0, 1)})})
    warm, notices = warm_start(study, write(tmp_path / "old"))
    assert {p.values["regularize.strength"] for p in warm.prior} == {BASE.regularize.strength}
    assert warm.points == ({"regularize.strength": BASE.regularize.strength},)
    assert "searched there, fixed here: augment.strength, optim.lr" in notices


def test_what_shifts_the_scores_is_said(tmp_path: Path) -> None:
    changes = {"max_epochs": 30, "optim.momentum": 0.5, "seed": 3}
    study = NEW.model_copy(update={"recipe": BASE.replace(changes), "data": Source(source="other")})
    _, notices = warm_start(study, write(tmp_path / "old"))
    assert notices[-3:] == [
        "the images differ: 'digits' there, 'other' here",
        "max_epochs differs: 9 there, 30 here",
        f"the recipes differ: optim.momentum ({BASE.optim.momentum} there, 0.5 here)",
    ]
    _, notices = warm_start(NEW.model_copy(update={"data": Source(split_seed=1)}), tmp_path / "old")
    assert notices[-1] == "the same images are split in another way"


def test_a_trial_counts_until_it_took_over_other_weights(tmp_path: Path) -> None:
    warm, _ = warm_start(NEW, write(tmp_path / "old", trials=TRIALS[1:2], exploited=True))
    assert [(p.score, p.epochs, p.complete) for p in warm.prior] == [(0.5, 1, False)]
    assert warm.prior[0].values["augment.strength"] == 0.6


def test_a_trial_above_a_limit_of_the_new_study_is_left_out(tmp_path: Path) -> None:
    study = NEW.model_copy(update={"limits": {"parameters": 10}})
    with pytest.raises(ConfigError, match="5 above a limit of this study"):
        warm_start(study, write(tmp_path / "old"))


def test_points_are_left_alone_if_none_are_wanted(tmp_path: Path) -> None:
    warm, notices = warm_start(NEW, write(tmp_path / "old"), best=0)
    assert warm.points == () and len(warm.prior) == 5
    assert notices[0] == "5 of 9 trials of 'old' are learned from"


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old")
    with pytest.raises(ConfigError, match=r"is no study \(study.json is missing\)"):
        warm_start(NEW, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="compared by 'val_accuracy', this study compares by 'val_loss'"):
        warm_start(NEW.model_copy(update={"objective": "val_loss"}), old)
    narrow = NEW.model_copy(update={"space": space({"augment.strength": Uniform(0.95, 1)})})
    with pytest.raises(ConfigError, match=r"no trial of 'old' can be used \(9 outside this study's space"):
        warm_start(narrow, old)
    with pytest.raises(ConfigError, match=r"can be used \(it has none\)"):
        warm_start(NEW, write(tmp_path / "empty", trials=[]))


def test_a_study_that_leaves_its_objective_open_compares_as_the_older_one_did(tmp_path: Path) -> None:
    assert NEW.objective == "auto"
    warm, _ = warm_start(NEW, write(tmp_path / "old"))
    assert warm.objective == OLD.objective == "val_accuracy"
