"""Verdicts on a run: each of them from the curves it is about, none of a run that is well, none of too few reports."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvtune import health
from cvtune.probe_set import IMAGES, UNKNOWN, ProbeSet, said
from cvtune.tasks import RULES

CHANCE = math.log(10)
WELL = {
    "train_loss": [2.0, 1.2, 0.8, 0.5, 0.4, 0.35],
    "clean_loss": [1.8, 1.0, 0.6, 0.4, 0.3, 0.25],
    "val_loss": [1.9, 1.1, 0.7, 0.5, 0.42, 0.4],
    "probe_flips": [None, 0.3, 0.15, 0.08, 0.03, 0.01],
    "probe_entropy": [0.8, 0.95, 0.98, 0.99, 0.99, 0.99],
    "lr": [0.005, 0.01, 0.009, 0.006, 0.003, 0.001],
    "augment_strength": [0.3] * 6,
    "start_loss": [2.35, None, None, None, None, None],
    "weight_norm": [16.0, 17.0, 18.5, 19.5, 20.0, 20.2],
    "val_recall": [[0.5] * 10] * 6,
}
ILL: dict[str, dict[str, list[Any]]] = {
    "diverged": {"train_loss": [2.0, 3.0, 5.0, None], "clean_loss": [2.0, 3.0, 5.0, None]},
    "learning rate too high": {"probe_flips": [None, 0.9, 0.8, 0.85, 0.5, 0.3]},
    "learning rate too low": {
        "train_loss": [2.3, 2.25, 2.2, 2.15, 2.12, 2.1],
        "clean_loss": [2.28, 2.2, 2.15, 2.1, 2.08, 2.05],
        "val_loss": [2.29, 2.22, 2.18, 2.12, 2.1, 2.1],
        "weight_norm": [16.0, 16.05, 16.1, 16.1, 16.1, 16.1],
    },
    "overfitting": {
        "clean_loss": [1.0, 0.4, 0.1, 0.05, 0.02, 0.01],
        "val_loss": [1.2, 0.8, 0.9, 1.1, 1.3, 1.6],
    },
    "underfitting": {
        "train_loss": [2.2, 1.9, 1.8, 1.81, 1.79, 1.8],
        "clean_loss": [2.1, 1.8, 1.7, 1.72, 1.69, 1.7],
        "val_loss": [2.1, 1.8, 1.72, 1.72, 1.71, 1.7],
        "weight_norm": [16.0, 18.0, 20.0, 22.0, 23.0, 23.2],
        "augment_strength": [0.0] * 6,
    },
    "augmentation too strong": {
        "train_loss": [2.2, 2.1, 2.0, 1.95, 1.9, 1.9],
        "clean_loss": [2.0, 1.6, 1.2, 1.1, 1.05, 1.0],
        "val_loss": [2.0, 1.7, 1.3, 1.15, 1.1, 1.05],
        "weight_norm": [16.0, 18.0, 20.0, 22.0, 23.0, 23.2],
        "augment_strength": [0.9] * 6,
    },
    "collapsed to the majority class": {"probe_entropy": [0.3, 0.1, 0.0, 0.0, 0.0, 0.0]},
}


def reports(**changed: list[Any]) -> list[dict[str, Any]]:
    columns = {**WELL, **changed}
    return [{name: values[i] for name, values in columns.items()} for i in range(min(map(len, columns.values())))]


def names(found: tuple[health.Verdict, ...]) -> set[str]:
    return {verdict.name for verdict in found}


def test_a_run_that_is_well_gets_no_verdict() -> None:
    assert health.verdicts(reports()) == ()
    assert health.verdicts([]) == ()


def test_every_verdict_has_a_case_here() -> None:
    assert set(ILL) == {rule.name for rule in health.RULES}


@pytest.mark.parametrize("name", ILL)
def test_a_run_that_is_ill_gets_its_verdict_with_the_numbers_that_it_is_seen_by(name: str) -> None:
    found = {verdict.name: verdict.evidence for verdict in health.verdicts(reports(**ILL[name]))}
    assert name in found, found
    assert any(sign.isdigit() for sign in found[name]) and found[name].endswith(".")
    if name not in ("diverged", "learning rate too low", "augmentation too strong"):  # by what they mean with others
        assert len(found) == 1, found


def test_a_network_that_hardly_moves_has_not_diverged() -> None:
    idle = {name: [2.3501] * 6 for name in ("train_loss", "clean_loss", "val_loss")}
    assert "diverged" not in names(health.verdicts(reports(**idle)))


def test_diverged_is_worse_than_before_the_first_step() -> None:
    end = {"train_loss": [2.5, 2.6, 2.5, 2.45, 2.4, 2.36], "clean_loss": [2.6, 2.5, 2.45, 2.4, 2.38, 2.34]}
    assert "diverged" not in names(health.verdicts(reports(**end)))
    assert "diverged" in names(health.verdicts(reports(**end, start_loss=[2.33] + [None] * 5)))
    assert "diverged" in names(health.verdicts(reports(**end, start_loss=[None] * 6)))  # then above guessing, 2.303


def test_a_rate_is_too_high_that_moves_the_weights_far_to_nowhere_and_too_low_that_does_not_move_them() -> None:
    stuck = {name: [2.25] * 6 for name in ("train_loss", "clean_loss", "val_loss")}
    far, near = [6.0, 8.0, 12.0, 15.0, 17.0, 18.0], [6.0, 6.1, 6.1, 6.1, 6.1, 6.1]
    stuck["augment_strength"] = [0.0] * 6
    high, low = (names(health.verdicts(reports(**stuck, weight_norm=norms))) for norms in (far, near))
    assert high == {"learning rate too high", "underfitting"} and low == {"learning rate too low", "underfitting"}


def test_augmentation_is_too_strong_where_augmented_images_are_learned_far_worse_than_new_ones() -> None:
    easy = {"train_loss": [2.2, 1.8, 1.5, 1.3, 1.2, 1.1], "val_loss": [2.0, 1.1, 0.7, 0.5, 0.42, 0.4]}
    assert names(health.verdicts(reports(**easy))) == {"augmentation too strong"}
    assert health.verdicts(reports(**easy, augment_strength=[0.0] * 6)) == ()


def test_averages_of_batch_norm_that_lag_behind_and_an_untrained_networks_high_loss_are_no_bad_rate() -> None:
    assert health.verdicts(reports(clean_loss=[2.4, 60.0, 9.0, 1.2, 0.3, 0.25])) == ()
    first = reports(train_loss=[3.0, 1.2, 0.8, 0.5, 0.4, 0.35])
    assert names(health.verdicts(first)) == {"learning rate too high"}
    assert health.verdicts([first[0] | {"start_loss": 3.1}, *first[1:]]) == ()


def test_several_verdicts_may_hold_at_once() -> None:
    both = ILL["overfitting"] | ILL["collapsed to the majority class"]
    assert names(health.verdicts(reports(**both))) == {"overfitting", "collapsed to the majority class"}


def test_a_trial_that_was_stopped_early_is_not_blamed_for_what_it_had_no_time_to_learn() -> None:
    slow = reports(**ILL["learning rate too low"])
    assert names(health.verdicts(slow)) >= {"learning rate too low", "underfitting"}
    assert health.verdicts(slow, whole=False) == ()
    assert names(health.verdicts(reports(**ILL["diverged"]), whole=False)) >= {"diverged"}


def test_few_reports_say_nothing_unless_a_loss_is_no_number() -> None:
    flipping = reports(**ILL["learning rate too high"])
    assert health.verdicts(flipping[: health.FEWEST - 1]) == ()
    broken = health.verdicts([{"train_loss": math.inf, "val_loss": 2.0}])
    assert "diverged" in names(broken)


def test_of_folds_the_last_one_counts() -> None:
    first = [r | {"fold": 1} for r in reports(**ILL["learning rate too high"])]
    assert health.verdicts(first + [r | {"fold": 2} for r in reports()]) == ()


def test_what_a_loop_of_the_users_own_leaves_out_is_not_judged() -> None:
    bare = [{name: r[name] for name in ("train_loss", "val_loss")} for r in reports(**ILL["overfitting"])]
    assert health.verdicts(bare) == ()  # without the number of classes nobody knows what guessing has


def test_the_table_of_rules_names_columns_that_there_are() -> None:
    from cvtune.epoch import METRICS

    for rule in health.RULES:
        assert set(rule.sees) <= METRICS.keys() and rule.holds and rule.source


def test_flips_are_counted_between_reports_over_what_is_labelled() -> None:
    probe = ProbeSet(4, masks=False)
    truth = torch.tensor([[0], [1], [1], [-1]])

    def look(*guess: int) -> dict[str, Any]:
        return probe.look([said(torch.tensor(guess)[:, None], torch.full((4, 1), 0.5), truth, 2)])

    assert look(0, 0, 0, 0) == {
        "probe_flips": None, "probe_confidence": 0.5, "probe_entropy": 0.0, "probe_area": None,
    }  # fmt: skip
    told = look(1, 0, 0, 1)
    assert told["probe_flips"] == pytest.approx(1 / 3)
    assert told["probe_entropy"] == pytest.approx(1.0)  # one of three and two of three, as in the truth
    assert probe.last is not None and probe.last.flatten().tolist() == [1, 0, 0, UNKNOWN]


def test_the_probe_set_is_the_same_images_however_they_come_in_batches() -> None:
    images = 3 * IMAGES
    whole = np.arange(images)[ProbeSet(images, False).within(0)]
    parts = [np.arange(a, min(a + 100, images))[ProbeSet(images, False).within(a)] for a in range(0, images, 100)]
    assert len(whole) == IMAGES and np.concatenate(parts).tolist() == whole.tolist()
    assert len(np.arange(IMAGES)[ProbeSet(IMAGES, False).within(0)]) == IMAGES


def test_each_task_says_what_it_predicts() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    told = RULES["classify"].said(logits, torch.tensor([0, 1, 1]))
    assert told.guess.tolist() == [[0], [1], [0]] and told.there.tolist() == [1, 2]
    tags = RULES["multilabel"].said(logits, torch.tensor([[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0]]))
    assert tags.guess.tolist() == [[1, 0], [UNKNOWN, 1], [1, 0]]
    assert tags.predicted.tolist() == [2, 1] and tags.there.tolist() == [1, 1]
    assert len(tags.confidence) == 5 and bool((tags.confidence >= 0.5).all())
    masks = torch.zeros(1, 40, 40, dtype=torch.uint8)
    masks[:, :, 20:] = 255
    pixels = torch.zeros(1, 2, 40, 40)
    pixels[:, 1, 20:] = 2.0
    spots = RULES["segment"].said(pixels, masks)
    assert spots.guess.shape == (1, 13 * 13) and int((spots.guess == UNKNOWN).sum()) == 13 * 6
    probe = ProbeSet(1, masks=True)
    assert probe.look([spots])["probe_area"] == pytest.approx(6 / 13)


def test_the_document_holds_the_table_of_rules() -> None:
    document = (Path(__file__).resolve().parents[1] / "cvtune" / "docs" / "health.md").read_text()
    for rule in health.RULES:
        assert f"| {rule.name} | {rule.holds} |" in document
