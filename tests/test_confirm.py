"""Confirmation: what is trained again, who wins on validation, and intervals on the test images that keep promises."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from cvtune.bootstrap import TEST_METRICS
from cvtune.confirm import Comparison, choose_winner, compare, compared, metric_on_test, plan, spoken
from cvtune.errors import ConfigError
from cvtune.history import History
from cvtune.metrics import classification
from cvtune.recipe import Recipe, Regularize
from cvtune.sections import Confirm
from cvtune.space import Choice, LogUniform, Uniform, space
from cvtune.study import Study

SPACE = space({"augment.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1e-1)})
STUDY = Study(
    objective="val_accuracy", recipe=Recipe(max_epochs=4, seed=3), space=SPACE, confirm=Confirm(top=2, seeds=3)
)


class Record:
    """A history written trial by trial."""

    def __init__(self, study: Study) -> None:
        self.study, self.history = study, History()

    def add(
        self, role: str, curve: list[float | None], reason: str = "completed", label: str = "", **values: Any
    ) -> str:
        """A trial with its searched values (dots written as __) and the objective after each epoch."""
        index, searched = len(self.history.trials), {name.replace("__", "."): v for name, v in values.items()}
        trial = f"{index:05d}"
        recipe = self.study.trial(index, searched).model_dump(mode="json")
        event = {"trial": trial, "index": index, "role": role, "label": label, "values": searched, "recipe": recipe}
        self.history.apply({"kind": "trial", "t": 0.0, "waiting": False, **event})
        for epoch, value in enumerate(curve, 1):
            report = {"trial": trial, "step": epoch, "epoch": epoch, self.study.objective: value, "seconds": 1.0}
            self.history.apply({"kind": "epoch", "t": 1.0, "answer": "go", "acts": [], **report})
        self.history.apply({"kind": "end", "t": 2.0, "trial": trial, "reason": reason, "message": "", "acts": []})
        return trial


def searched(study: Study = STUDY) -> Record:
    """Three recipes of the search, the best one proposed twice, and three noise trials."""
    record = Record(study)
    for value in (0.5, 0.6, 0.7):
        record.add("noise", [value])
    record.add("search", [0.7, 0.8], augment__strength=0.2)  # 00003
    record.add("search", [0.9, 0.1], augment__strength=0.9)  # 00004, the best epoch counts
    record.add("control", [0.9], augment__strength=0.9)  # 00005, the same recipe
    record.add("search", [0.99], "diverged", augment__strength=0.4)
    return record


def counted(study: Study, record: Record) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for planned in plan(study, record.history):
        found.setdefault(planned.label, []).append(planned.index_of_seed)
    return found


def test_plan_takes_the_best_distinct_recipes_and_the_baselines() -> None:
    record = searched()
    assert counted(STUDY, record) == {"00004": [0, 1, 2], "00003": [0, 1, 2], "trivial": [0, 1, 2]}  # noise: default
    planned = plan(STUDY, record.history)
    assert [p.index_of_seed for p in planned] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    recipes = {p.label: p.recipe for p in planned}
    assert recipes["00004"] == STUDY.recipe.replace({"augment.strength": 0.9})
    assert recipes["trivial"] == STUDY.recipe.replace({"augment.policy": "trivial"})
    assert planned == plan(STUDY, record.history)


def test_without_baselines_the_best_recipes_alone_are_confirmed_and_compared() -> None:
    study = STUDY.set({"confirm.baselines": False, "confirm.top": 1})
    record = searched()
    assert counted(study, record) == {"00004": [0, 1, 2]} and study.most_confirmed == 1
    for score in (0.5, 0.6, 0.7):
        record.add("confirm", [score], label="00004")
    winner = choose_winner(study, record.history)  # the noise trials are no seeds of anything here
    assert winner == {"label": "00004", "scores": {"00004": [0.5, 0.6, 0.7]}, "failed": {}, "tied": []}


def test_the_best_recipe_of_each_value_of_a_choice_is_confirmed() -> None:
    domains = {"optim.name": Choice("sgd", "adam"), "optim.lr": LogUniform(1e-4, 1e-1)}
    study = STUDY.model_copy(update={"space": space(domains), "confirm": Confirm(top=1, per="optim.name", seeds=2)})
    record = Record(study)
    record.add("search", [0.9], optim__name="sgd", optim__lr=1e-2)  # 00000
    record.add("search", [0.8], optim__name="sgd", optim__lr=2e-2)
    record.add("search", [0.2], optim__name="adam", optim__lr=1e-2)
    record.add("control", [0.3], optim__name="adam", optim__lr=1e-3)  # 00003, the worst but one of all
    assert list(counted(study, record)) == ["00000", "00003", "default", "trivial"]
    assert study.most_confirmed == 4
    assert study.set({"optim.name": "adam"}).most_confirmed == 3  # no longer searched: one value, one recipe


@pytest.mark.parametrize(("per", "said"), [("optim.nam", r"optim\.name"), ("optim.lr", "Choice.*LogUniform")])
def test_what_is_no_choice_has_no_best_of_each_value(per: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"confirm\.per = '{per}'.*{said}"):
        STUDY.set({"confirm.per": per})


def test_what_was_tried_is_not_planned_again_however_it_ended() -> None:
    record = searched()
    record.add("confirm", [0.5], "oom_gpu", "00004")
    record.add("confirm", [0.5], label="00004")
    record.add("confirm", [0.5], label="trivial")
    assert counted(STUDY, record) == {"00003": [0, 1, 2], "trivial": [1, 2], "00004": [2]}


def test_unfinished_noise_is_no_seed_of_the_default() -> None:
    record = Record(STUDY)
    record.add("noise", [0.5])
    record.add("noise", [0.5], "diverged")
    record.add("noise", [0.5], "stopped_budget")
    record.add("search", [0.7], augment__strength=0.2)
    assert counted(STUDY, record)["default"] == [1, 2]


def test_candidates_alone_are_enough_and_nothing_gives_nothing() -> None:
    candidate = Recipe(max_epochs=9).replace({"augment.strength": 0.6})
    some = STUDY.model_copy(update={"confirm": Confirm(top=0, seeds=2), "candidates": {"old": candidate}})
    assert counted(some, Record(some)) == {"old": [0, 1], "default": [0, 1], "trivial": [0, 1]}
    assert plan(some, History())[0].recipe == candidate.replace({"seed": 3})
    none = STUDY.model_copy(update={"confirm": Confirm(top=0)})
    assert plan(none, searched(none).history) == [] and choose_winner(none, searched(none).history) is None


def test_a_baseline_that_is_confirmed_anyway_is_left_out() -> None:
    study = STUDY.model_copy(update={"recipe": STUDY.recipe.replace({"augment.policy": "trivial"})})
    record = Record(study)
    record.add("search", [0.9], augment__strength=study.recipe.augment.strength)
    assert counted(study, record) == {"00000": [0, 1, 2]}  # is the default, which is the trivial one
    heavy = study.model_copy(update={"recipe": study.recipe.replace({"regularize.strength": 0.9})})
    assert list(counted(heavy, Record(heavy))) == ["default", "trivial"]
    assert {p.label: p.recipe for p in plan(heavy, History())}["trivial"].regularize == Regularize()


def test_a_population_is_confirmed_as_its_schedule() -> None:
    record = Record(STUDY)
    donor, clone = (record.add("search", [0.6, 0.7], "", augment__strength=s) for s in (0.1, 0.2))
    for trial in (donor, clone):
        record.history.trials[trial].reason = None
    act = {"act": "exploit", "trial": clone, "donor": donor, "donor_step": 2, "values": {"augment.strength": 0.5}}
    report = {"trial": donor, "step": 3, "epoch": 3, "val_accuracy": 0.7, "seconds": 1.0, "answer": "go"}
    record.history.apply({"kind": "epoch", "t": 1.0, "acts": [{**act, "why": ""}], **report})
    report |= {"trial": clone, "val_accuracy": 0.9, "reason": "completed", "message": "", "acts": []}
    record.history.apply({"kind": "epoch", "t": 1.0, **report})
    best = plan(STUDY, record.history)[0]
    assert best.label == clone
    assert best.recipe == STUDY.recipe.replace({"augment.strength": 0.1, "changes": ((2, {"augment.strength": 0.5}),)})


def test_winner_has_the_best_mean_at_the_last_epoch_and_failures_are_named() -> None:
    record = searched()
    for curve in ([0.99, 0.70], [0.99, 0.74], [0.99, 0.72]):
        record.add("confirm", curve, label="00003")
    for value in (0.80, 0.82):
        record.add("confirm", [value], label="00004")
    failed = record.add("confirm", [0.9], "oom_gpu", "00004")
    lost = record.add("confirm", [], "infra_lost", "trivial")
    winner = choose_winner(STUDY, record.history)
    assert winner == json.loads(json.dumps(winner))
    assert winner is not None and winner["label"] == "00004"
    assert winner["scores"] == {"00004": [0.8, 0.82], "00003": [0.7, 0.74, 0.72], "default": [0.5, 0.6, 0.7]}
    assert winner["failed"] == {"00004": [failed], "trivial": [lost]}
    told = [(r.label or "default", r.trial) for r in compared(STUDY, record.history)]
    assert [label for label, _ in told] == ["00004"] * 2 + ["00003"] * 3 + ["default"] * 3


def test_a_loss_is_better_when_it_is_lower_and_nothing_finished_has_no_winner() -> None:
    study = STUDY.model_copy(update={"objective": "val_loss"})
    record = Record(study)
    record.add("search", [0.5], augment__strength=0.1)
    record.add("confirm", [0.9], "diverged", "00000")
    record.add("confirm", [0.9], "cancelled", "default")
    assert choose_winner(study, record.history) is None
    record.add("confirm", [0.9], label="00000")
    record.add("confirm", [0.3], label="default")
    winner = choose_winner(study, record.history)
    assert winner is not None and (winner["label"], winner["tied"]) == ("default", ["00000"])  # one seed each


def test_winner_and_tied_hold_the_best_recipe_as_often_as_promised() -> None:
    rng, truth, hits, excluded = np.random.default_rng(0), {"a": 0.80, "b": 0.81, "c": 0.60, "d": 0.80}, 0, 0
    study = STUDY.model_copy(update={"confirm": Confirm(top=0), "candidates": dict.fromkeys(truth, Recipe())})
    for _ in range(300):
        record = Record(study)
        for label, mean in truth.items():
            for score in rng.normal(mean, 0.02, size=3):
                record.add("confirm", [float(score)], label=label)
        winner = choose_winner(study, record.history)
        assert winner is not None
        hits += "b" in (winner["label"], *winner["tied"])
        excluded += "c" not in winner["tied"]
    assert hits / 300 >= 0.95 and excluded / 300 > 0.95


def outputs(rng: np.random.Generator, images: int, classes: int) -> np.ndarray:
    return np.asarray(rng.dirichlet(np.full(classes, 0.3), size=images))


@pytest.mark.parametrize("metric", TEST_METRICS)
def test_metrics_are_those_of_the_validation_images(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.choice([0, 1, 3], size=300), outputs(rng, 300, 5)  # classes 2 and 4 are not there
    models = [probabilities, outputs(rng, 300, 5)]
    seen = compare(STUDY, {"a": models}, labels, None, metric, "a", rounds=50)
    expected = [classification(torch.from_numpy(p).log(), torch.from_numpy(labels))[metric] for p in models]
    assert seen.recipes[0].seeds == pytest.approx(expected, rel=1e-5)
    assert seen.recipes[0].mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert seen.recipes[0].low < seen.recipes[0].mean < seen.recipes[0].high
    assert seen.differences == () and seen.images == 300


STRENGTHS = np.array([1.3, 1.3, 1.2, 1.0])
HARDNESS = 0.3  # how far a recipe's own opinion of an image goes


def models(rng: np.random.Generator, of_seed: float, on_image: float, images: int = 400) -> dict[str, list[np.ndarray]]:
    """Four recipes with three seeds each. A margin is the sum of the recipe's strength, the seed's luck, the image
    (the same for all), the recipe on this image and the seed on this image; above 0 the prediction is right."""
    shared, made = rng.normal(size=images), {}
    for label, strength in zip("abcd", STRENGTHS, strict=True):
        own = shared + HARDNESS * rng.normal(size=images)
        margins = [strength + of_seed * rng.normal() + own + on_image * rng.normal(size=images) for _ in range(3)]
        made[label] = [np.stack([1 / (1 + np.exp(m)), 1 / (1 + np.exp(-m))], axis=1) for m in margins]
    return made


@pytest.mark.parametrize(("of_seed", "on_image"), [(0.3, 0.1), (0.15, 0.3), (0.05, 0.5), (0.0, 0.8)])
def test_intervals_hold_together_as_often_as_promised(of_seed: float, on_image: float) -> None:
    """From chance that is the seeds' alone to chance that is the images' alone, which is the rule with large nets."""
    rng, labels = np.random.default_rng(0), np.ones(400, int)
    right = ndtr(STRENGTHS / np.sqrt(1 + HARDNESS**2 + of_seed**2 + on_image**2))
    truth, gaps = dict(zip("abcd", right, strict=True)), dict(zip("bcd", right[0] - right[1:], strict=True))
    told = [
        compare(STUDY, models(rng, of_seed, on_image), labels, None, "accuracy", "a", seed=i, rounds=200)
        for i in range(200)
    ]
    together = np.mean([all(d.low <= gaps[d.label] <= d.high for d in c.differences) for c in told])
    assert 0.9 <= together <= 0.999
    alone = np.mean([[r.low <= truth[r.label] <= r.high for r in c.recipes] for c in told])
    assert 0.9 <= alone <= 0.999
    widths = np.mean([[(d.high - d.low) / 2 for d in c.differences] for c in told], axis=0)
    oracle = 2.35 * np.std([[d.mean for d in c.differences] for c in told], axis=0)  # three normal comparisons at 95 %
    assert (widths > oracle).all() and (widths < 3 * oracle).all()


def test_pairing_and_groups_are_used() -> None:
    rng, labels = np.random.default_rng(1), np.ones(400, int)
    made = models(rng, 0.0, 0.1)
    seen = compare(STUDY, made, labels, None, "accuracy", "a")
    half = {r.label: (r.high - r.low) / 2 for r in seen.recipes}
    for label in "bcd":
        (pair,) = compare(STUDY, {"a": made["a"], label: made[label]}, labels, None, "accuracy", "a").differences
        assert (pair.high - pair.low) / 2 < 0.8 * np.hypot(half["a"], half[label])
        together = next(d for d in seen.differences if d.label == label)
        assert together.high - together.low > pair.high - pair.low
    twice = {label: [np.repeat(p, 4, axis=0) for p in seeds] for label, seeds in made.items()}
    groups = np.repeat([f"patient {i}" for i in range(400)], 4)
    grouped = compare(STUDY, twice, np.ones(1600, int), groups, "accuracy", "a")
    naive = compare(STUDY, twice, np.ones(1600, int), None, "accuracy", "a")
    for one, same, less in zip(seen.recipes, grouped.recipes, naive.recipes, strict=True):
        assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.15)
        assert less.high - less.low < 0.8 * (one.high - one.low)
    assert (grouped.groups, grouped.images, naive.groups) == (400, 1600, None)


def test_identical_recipes_are_tied_and_far_ones_are_not() -> None:
    rng, labels = np.random.default_rng(2), np.ones(400, int)
    made = models(rng, 0.02, 0.3)
    made = {"00007": made["a"], "twin": made["a"], "default": [p[:, ::-1] for p in made["a"]]}
    for metric in TEST_METRICS:
        seen = compare(STUDY, made, labels, None, metric, "00007")
        assert "twin" in seen.tied
        if metric != "ece":
            assert seen.tied == ("twin",)
            assert "better than the default recipe" in seen.headline() and "may be chance" not in seen.headline()
    assert seen == compare(STUDY, made, labels, None, metric, "00007")
    assert seen != compare(STUDY, made, labels, None, metric, "00007", seed=1)


def test_a_recipe_with_one_seed_borrows_the_spread_of_the_others() -> None:
    made, labels = models(np.random.default_rng(3), 0.3, 0.1), np.ones(400, int)
    full = compare(STUDY, made, labels, None, "accuracy", "a")
    one = compare(STUDY, {**made, "b": made["b"][:1]}, labels, None, "accuracy", "a")
    alone = compare(STUDY, {label: seeds[:1] for label, seeds in made.items()}, labels, None, "accuracy", "a")
    width = {name: c.differences[0].high - c.differences[0].low for name, c in (("one", one), ("alone", alone))}
    assert width["one"] > full.differences[0].high - full.differences[0].low > width["alone"]
    assert "chance of the seed" in alone.note and not one.note and alone.note in alone.sentences()


def test_headline_says_what_happened() -> None:
    made, labels = models(np.random.default_rng(4), 0.05, 0.3), np.ones(400, int)
    renamed = {"00007": made["a"], "default": made["b"], "trivial": made["d"]}
    seen = compare(STUDY, renamed, labels, None, "val_accuracy", "00007")
    gain = next(d for d in seen.differences if d.label == "default")
    for number in (f"{seen.recipes[0].mean:.4g}", f"{abs(gain.mean):.3g}", f"{gain.low:.3g}", f"{gain.high:.3g}"):
        assert number in seen.headline()
    assert gain.tied and "may be chance" in seen.headline()
    loss = compare(STUDY, renamed, labels, None, "val_loss", "trivial")
    gap = next(d for d in loss.differences if d.label == "default")
    assert gap.mean > 0 and "worse than the default recipe" in loss.headline() and f"{-gap.high:.3g}" in loss.headline()
    assert "default recipe itself" in compare(STUDY, renamed, labels, None, "loss", "default").headline()
    alone = compare(STUDY, {"x": made["a"]}, labels, None, "loss", "x")
    assert "not confirmed beside it" in alone.headline()
    content = json.loads(json.dumps(seen.to_json()))
    assert content["sentences"] == seen.sentences() and content["winner"] == "00007" and content["format"] == 1
    assert isinstance(seen, Comparison)


def test_objectives_without_a_counterpart_are_compared_by_accuracy() -> None:
    assert metric_on_test("val_macro_f1") == ("macro_f1", "") and metric_on_test("loss") == ("loss", "")
    metric, note = metric_on_test("clean_accuracy")
    assert metric == "accuracy" and "clean_accuracy" in note
    made, labels = models(np.random.default_rng(5), 0.1, 0.1), np.ones(400, int)
    seen = compare(STUDY, made, labels, None, "train_loss", "a", rounds=50)
    assert seen.metric == "accuracy" and "train_loss" in seen.note and seen.note in seen.sentences()


def test_what_does_not_fit_is_told() -> None:
    labels, fine = np.array([0, 1, 1]), np.full((3, 2), 0.5)
    bad: list[tuple[dict[str, list[np.ndarray]], Any, Any, str, str]] = [
        ({"a": [fine]}, labels, None, "b", "'b' has no predictions"),
        ({"a": []}, labels, None, "a", "'a' has no predictions"),
        ({"a": [fine], "b": [fine[:2]]}, labels, None, "a", r"'b' have the shapes \[\(2, 2\)\]"),
        ({"a": [fine], "b": [np.full((3, 3), 0.3)]}, labels, None, "a", "each of the 2 classes"),
        ({"a": [fine * np.nan]}, labels, None, "a", "not all finite"),
        ({"a": [fine]}, np.array([0, 1, 2]), None, "a", "Labels run from 0 to 2"),
        ({"a": [fine]}, labels, np.array([0, 1]), "a", "2 groups for 3"),
        ({"a": [fine]}, labels, np.array([7, 7, 7]), "a", "Fewer than two"),
    ]
    for predictions, classes, groups, winner, says in bad:
        with pytest.raises(ConfigError, match=says):
            compare(STUDY, predictions, classes, groups, "accuracy", winner)


@pytest.mark.parametrize(
    ("metric", "said"),
    [("accuracy", "accuracy"), ("worst_recall", "worst recall"), ("map", "mAP"), ("mean_iou", "mean IoU")],
)
def test_a_metric_is_named_as_people_say_it(metric: str, said: str) -> None:
    assert spoken(metric) == said
