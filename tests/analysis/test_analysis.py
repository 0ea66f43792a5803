"""Tables with a known truth: what the analysis says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cvtune import ASHA, Budget, Choice, LogUniform, Recipe, Study, Uniform, space
from cvtune.analysis import analyse
from cvtune.analysis.design import design_of
from cvtune.analysis.findings import Findings
from cvtune.analysis.response import fit
from cvtune.analysis.surface import Map, interaction_of, region_of
from cvtune.analysis.tables import Tables

SPACE = {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-3, 1e-1)}
MOST = 9


def made(place: np.ndarray, final: np.ndarray, epochs: np.ndarray, **columns: Any) -> Tables:
    """A study of trials at places (T, D) whose score rises by the same steps to `final` (T,), up to `epochs`."""
    domains = {**SPACE, **columns.pop("more", {})}
    study = Study(
        space=space(domains), recipe=Recipe().replace({"max_epochs": MOST}), scheduler=ASHA(), budget=Budget(trials=32)
    ).settled(columns.pop("objective", "val_accuracy"))
    names = [f"{k:05d}" for k in range(len(place))]
    points = [study.space.pick(dict(zip(domains, row, strict=True))) for row in place.tolist()]
    curves = [f - 0.04 * (MOST - np.arange(1, n + 1)) / MOST for f, n in zip(final, epochs, strict=True)]
    trials: dict[str, Any] = {
        "trial": np.array(names, object),
        "role": np.full(len(names), "search", object),
        "reason": np.array(["completed" if n == MOST else "stopped_scheduler" for n in epochs], object),
        "last": np.array([curve[-1] for curve in curves]),
        **{name: np.array([point[name] for point in points]) for name in domains},
    }
    rows = {
        "trial": np.repeat(np.array(names, object), epochs),
        "step": np.concatenate([np.arange(1.0, n + 1) for n in epochs]),
        study.objective: np.concatenate(curves),
    }
    return Tables(study, trials | columns.pop("trials", {}), rows | columns.pop("reports", {}), **columns)


def ridge(place: np.ndarray) -> np.ndarray:
    """Best at (0.5, 0.5); the more augmentation, the less regularization."""
    x, y = place[:, 0], place[:, 1]
    return 0.9 - 0.1 * (x - 0.5) ** 2 - 0.3 * (y - 0.5 + 0.6 * (x - 0.5)) ** 2


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    return np.random.default_rng(0).random((48, 3))


@pytest.fixture(scope="module")
def found(places: np.ndarray) -> Findings:
    luck = 0.002 * np.random.default_rng(1).standard_normal(len(places))
    return analyse(made(places, ridge(places) + luck, np.full(len(places), MOST)))


def test_a_known_ridge_is_found(found: Findings) -> None:
    assert found.surface is not None and found.ridge is not None and found.interaction is not None
    best = found.surface.best
    assert abs(best.x - 0.5) < 0.2 and abs(best.y - 0.5) < 0.2
    assert best.score.low < 0.9 < best.score.high + 0.01
    assert found.surface.region[10, 10] and found.surface.region_share < 0.3
    assert found.ridge.slope.high < 0
    assert found.interaction.shown and found.interaction.effect.mean < 0 and not found.interaction.scale_dependent
    assert any("the less regularize.strength is of use" in sentence for sentence in found.sentences)
    by = f"{found.surface.epsilon:.2g}"
    outside = f"Any setting outside is shown, at 90 %, to be worse than the best guess by more than {by}."
    assert any(sentence.endswith(outside) and "of the best epoch" in sentence for sentence in found.sentences)


def test_importance_shares_add_up_and_the_idle_rate_comes_last(found: Findings) -> None:
    assert found.importances is not None
    shares = {one.names: one.share.mean for one in found.importances}
    assert abs(sum(shares.values()) - 1) < 1e-6
    assert shares[("regularize.strength",)] > shares[("optim.lr",)]
    assert shares[("augment.strength", "regularize.strength")] > shares[("augment.strength", "optim.lr")]


def test_the_same_tables_give_the_same_findings(places: np.ndarray, found: Findings) -> None:
    tables = made(places, ridge(places), np.full(len(places), MOST))
    one, two = analyse(tables), analyse(tables)
    assert one.sentences == two.sentences
    assert one.surface is not None and two.surface is not None
    assert np.array_equal(one.surface.mean, two.surface.mean)


def test_a_stopped_trial_counts_as_censored_not_as_finished(places: np.ndarray) -> None:
    """All settings are alike, but on the left all trials were stopped after the first, low epoch."""
    epochs = np.where(places[:, 0] < 0.4, 1, MOST)
    surface = analyse(made(places, np.full(len(places), 0.85), epochs)).surface
    assert surface is not None
    assert abs(surface.mean[:, 0].mean() - 0.85) < 0.02  # the trials there showed 0.81
    assert surface.extrapolated[10, 0] and not surface.extrapolated[10, 15]


def test_the_profile_is_blank_where_the_rate_was_not_covered(places: np.ndarray) -> None:
    narrow = places.copy()
    narrow[:, 2] = np.where(narrow[:, 0] < 0.5, 0.1 * narrow[:, 2], narrow[:, 2])
    surface = analyse(made(narrow, ridge(narrow), np.full(len(narrow), MOST))).surface
    assert surface is not None
    assert surface.blank[10, 2] and not surface.blank[10, 18]
    assert np.isnan(surface.profile[surface.blank]).all() and np.isfinite(surface.profile[~surface.blank]).all()


def test_of_a_loss_the_least_is_best(places: np.ndarray) -> None:
    found = analyse(made(places, 1.5 - ridge(places), np.full(len(places), MOST), objective="val_loss"))
    assert found.mode == "min" and found.surface is not None
    assert abs(found.surface.best.x - 0.5) < 0.25
    assert found.surface.best.score.mean < found.surface.mean.max()


def test_three_trials_say_nothing_and_why(places: np.ndarray) -> None:
    found = analyse(made(places[:3], ridge(places[:3]), np.full(3, MOST)))
    assert found.surface is None and found.ties is None
    assert found.missing["surface"] == "3 trials with a score and one recipe throughout: it takes at least 8"
    assert "fewer than 8 trials" in found.missing["gap"]


def test_an_axis_that_was_not_searched_is_named(places: np.ndarray) -> None:
    tables = made(places, ridge(places), np.full(len(places), MOST))
    found = analyse(tables, ("augment.strength", "model.width"))
    assert found.surface is None and found.importances is not None
    assert found.missing["surface"].startswith("model.width was not searched; searched were augment.strength")


def test_the_optimum_that_moves_with_the_architecture_is_said(places: np.ndarray) -> None:
    place = np.column_stack([places, np.arange(len(places)) % 2 * 0.5 + 0.25])
    center = np.where(place[:, 3] < 0.5, 0.2, 0.8)
    score = 0.9 - 0.3 * (place[:, 0] - center) ** 2
    more = {"model.norm": Choice("batch", "group")}
    third = analyse(made(place, score, np.full(len(place), MOST), more=more)).third
    assert third is not None and third.values == ("batch", "group")
    assert third.moves[0] and third.best_x[0].mean < 0.5 < third.best_x[1].mean


def test_a_sign_that_depends_on_the_scale_is_said_to(places: np.ndarray) -> None:
    """The effect of y falls up to the middle of x and rises behind it: which part weighs more is a matter of scale."""
    response = fit(design_of(made(places, ridge(places), np.full(len(places), MOST))), (0, 1), 0)
    u = np.linspace(0, 1, 21)
    turning = np.outer(u, (u - 0.45) ** 2)
    steady = np.outer(u, u)
    rng = np.random.default_rng(0)
    for surface, expected in ((turning, True), (steady, False)):
        draws = surface + 0.001 * rng.standard_normal((50, 21, 21))
        assert interaction_of(Map(response, (0, 1), u, np.zeros((441, 3)), draws)).scale_dependent is expected


def test_a_flat_surface_has_a_large_sweet_spot() -> None:
    rng = np.random.default_rng(0)
    flat, _ = region_of(0.01 * rng.standard_normal((400, 11, 11)), 0.02)
    peaked = -np.add.outer((np.linspace(0, 1, 11) - 0.5) ** 2, (np.linspace(0, 1, 11) - 0.5) ** 2)
    sharp, near = region_of(peaked + 0.001 * rng.standard_normal((400, 11, 11)), 0.001)
    assert flat.mean() > 0.8 and sharp.mean() < 0.05
    assert sharp[5, 5] and near.max() <= 1


def test_all_of_a_level_crest_is_in_the_sweet_spot() -> None:
    """Of a crest one setting happens to be highest in each draw; the others are as good and must not be left out."""
    rng = np.random.default_rng(0)
    crest = -np.abs(np.linspace(0, 1, 11) - 0.5)[:, None] + np.zeros((11, 11))
    region, near = region_of(crest + 0.01 * rng.standard_normal((400, 11, 11)), 0.0)
    assert region[5].all() and not np.delete(region, 5, axis=0).any()
    assert near[5].min() > 0.3


def test_a_cliff_is_found_where_it_is_and_a_parabola_stays_smooth(places: np.ndarray) -> None:
    """How rough an axis is, the data say, for each axis by itself."""
    score = np.where(places[:, 0] > 0.6, 0.75, 0.9) - 0.2 * (places[:, 1] - 0.5) ** 2
    response = fit(design_of(made(places, score, np.full(len(places), MOST))), (0, 1), 0)
    u = np.linspace(0, 1, 101)
    along = np.stack([u, np.full(101, 0.5), np.full(101, 0.5)], 1)
    x = response.averaged(along, (0,)).mean(0)
    y = response.averaged(along[:, [1, 0, 2]], (1,)).mean(0)
    fallen = (x[50] - x[70]) / np.ptp(x)
    assert fallen > 0.7  # within a fifth of the axis; a few polynomials would smear it over half of it
    smooth = np.polynomial.Polynomial.fit(u, y, 2)(u)
    assert np.abs(y - smooth).max() < 0.2 * np.ptp(y)


def confirmed(tables: Tables, runs: dict[str, list[float]]) -> Tables:
    """The tables with confirming trials: label -> last scores."""
    rows = [(label, value) for label, values in runs.items() for value in values]
    extra = {
        "trial": np.array([f"c{k}" for k in range(len(rows))], object),
        "role": np.full(len(rows), "confirm", object),
        "label": np.array([label for label, _ in rows], object),
        "reason": np.full(len(rows), "completed", object),
        "last": np.array([value for _, value in rows]),
    }
    count = len(tables.trials["trial"])
    empty = {"label": np.full(count, None, object)}
    old = {**empty, **tables.trials}
    trials = {
        name: np.concatenate([values, extra.get(name, np.full(len(rows), values[0], object))]).astype(
            float if name == "last" or values.dtype == float else object
        )
        for name, values in old.items()
    }
    return Tables(tables.study, trials, tables.epochs)


def test_ties_and_ablation_come_from_the_confirmation(places: np.ndarray) -> None:
    runs = {
        "00001": [0.900, 0.904, 0.896],
        "00002": [0.899, 0.903, 0.897],
        "00003": [0.850, 0.853, 0.847],
        "without augment.color of 00001": [0.860, 0.862, 0.858],
        "without augment.mixup of 00001": [0.901, 0.899, 0.900],
    }
    found = analyse(confirmed(made(places, ridge(places), np.full(len(places), MOST)), runs))
    assert found.ties is not None and found.ablation is not None
    tied = {c.label: (c.tied, c.best) for c in found.ties.candidates}
    assert tied["00001"][0] and tied["00002"][0] and not tied["00003"][0]
    assert abs(sum(best for _, best in tied.values()) - 1) < 1e-9 and tied["00003"][1] < 0.01
    first, second = found.ablation.knobs
    assert (first.name, first.change.high < 0, second.change.excludes_zero) == ("augment.color", True, False)


def test_the_class_that_the_winner_hurts_is_named(places: np.ndarray) -> None:
    images, rng = 400, np.random.default_rng(0)
    target = np.arange(images) % 2
    wrong = {"strong": np.where(target == 1, rng.random(images) < 0.4, rng.random(images) < 0.02)}
    wrong["weak"] = rng.random(images) < 0.03
    tables = made(places, ridge(places), np.full(len(places), MOST))
    tables = confirmed(tables, {label: [0.9, 0.9] for label in wrong})
    strengths = tables.trials["augment.strength"].astype(float)
    strengths[tables.column("label") == "strong"] = 0.9
    strengths[tables.column("label") == "weak"] = 0.2
    trials = [(n, label) for n, label in zip(tables.trials["trial"], tables.column("label"), strict=True) if label]
    predictions = {
        "trial": np.repeat(np.array([n for n, _ in trials], object), images),
        "label": np.repeat(np.array([label for _, label in trials], object), images),
        "target": np.tile(target.astype(float), len(trials)),
        "predicted": np.concatenate([np.where(wrong[label], 1 - target, target).astype(float) for _, label in trials]),
    }
    made_of = Tables(
        tables.study,
        {**tables.trials, "augment.strength": strengths},
        tables.epochs,
        predictions=predictions,
        provenance={"classes": ["cat", "dog"]},
        comparison={"winner": "strong", "sentences": ["strong wins."]},
    )
    found = analyse(made_of).per_class
    assert found is not None and (found.winner, found.reference, found.strengths) == ("strong", "weak", (0.9, 0.2))
    dog, cat = found.classes
    assert (dog.name, dog.hurt, cat.hurt) == ("dog", True, False)
    assert dog.change.low < dog.change.mean < dog.change.high < 0


def test_gap_rungs_and_costs(places: np.ndarray) -> None:
    epochs = np.where(np.arange(len(places)) % 3 == 0, MOST, 1)
    tables = made(places, ridge(places), epochs)
    strength = np.repeat(places[:, 0], epochs)
    more = {
        "clean_accuracy": tables.epochs["val_accuracy"] + 0.1 - 0.05 * strength,
        "seconds": np.full(len(strength), 36.0),
    }
    found = analyse(made(places, ridge(places), epochs, reports=more))
    assert found.gap is not None and found.rungs is not None and found.costs is not None
    assert found.gap.over_x.mean == pytest.approx(-0.05, abs=0.01) and not found.gap.over_y.mean > 0.01
    assert found.rungs.reached.tolist()[0] == len(places)
    assert found.rungs.saved == pytest.approx(1 - epochs.sum() / (MOST * len(epochs)))
    assert found.costs.unit == "CPU-hours" and found.costs.total == pytest.approx(epochs.sum() * 36 / 3600)


def test_thousands_of_trials_are_analysed_whole() -> None:
    rng = np.random.default_rng(0)
    many = rng.random((3000, 3))
    epochs = np.where(rng.random(3000) < 0.2, MOST, 1)
    found = analyse(made(many, ridge(many) + 0.003 * rng.standard_normal(3000), epochs))
    assert found.surface is not None and len(found.surface.dots.trial) == 3000
    assert found.surface.region_share < 0.1 and found.surface.region[10, 10]


def test_over_folds_a_trial_counts_by_its_mean_however_many_it_finished(places: np.ndarray) -> None:
    epochs = np.where(np.arange(len(places)) % 3, 2 * MOST, MOST)  # one fold or two, reported after each epoch
    single = made(places, ridge(places), np.full(len(places), MOST))
    study = single.study.model_copy(update={"recipe": single.study.recipe.replace({"data.folds": 3})})
    names, ends = np.repeat(single.trials["trial"], epochs), np.cumsum(epochs) - 1
    mean = np.full(len(names), np.nan)
    mean[ends], mean[ends[epochs > MOST] - MOST] = ridge(places), 0.1  # the first fold alone said something else
    steps = np.concatenate([np.arange(1.0, n + 1) for n in epochs])
    tables = Tables(study, single.trials, {"trial": names, "step": steps, "val_accuracy": steps, "folds_mean": mean})
    design = design_of(tables)
    assert design.score == pytest.approx(ridge(places)) and design.whole.all()
    found = analyse(tables)
    assert found.surface is not None and found.rungs is None and "folds" in found.missing["rungs"]
