"""Training: learns, resumes bit for bit, follows changes, stops when asked."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtune import checkpoint
from cvtune.data import Dataset, Part, open_dataset
from cvtune.epoch import FOLDS, METRICS, Epoch
from cvtune.errors import DataError
from cvtune.evaluation import predict, score_test, summed
from cvtune.models import Network
from cvtune.optim import Stepper
from cvtune.recipe import MUTABLE, Recipe
from cvtune.regularize import resolve
from cvtune.sections import Source
from cvtune.train import NotInForce, Run, train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Recipe().replace(
    {
        "data.image_size": 16,
        "model.width": 4,
        "max_epochs": 4,
        "augment.flip": "none",
        "data.train_fraction": 0.3,
        "optim.lr": 1e-2,
    }
)
TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory", "image_ms")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(Source(source="digits"), SMALL.data, tmp_path_factory.mktemp("cache"), None, 1)


def numbers(epoch: Epoch) -> dict[str, float]:
    """What must be the same in a repeated run: everything but times."""
    return {name: value for name, value in epoch.numbers().items() if name not in TIMES}


def test_the_first_report_tells_the_loss_before_the_first_step_which_changes_nothing(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SMALL.replace({"max_epochs": 2})
    fresh = Run(two, digits)
    untrained = summed(fresh, digits.train, indices=fresh.clean).scores()["loss"]
    epochs = list(train(fresh))
    assert [e.start_loss for e in epochs] == [untrained, None]
    monkeypatch.setattr("cvtune.train.clean_loss", lambda run, stop: None)
    without = list(train(Run(two, digits)))
    assert [numbers(e) | {"start_loss": 0.0} for e in without] == [numbers(e) | {"start_loss": 0.0} for e in epochs]


def test_it_learns_and_every_number_is_sane(digits: Dataset) -> None:
    epochs = list(train(Run(SMALL.replace({"max_epochs": 5, "data.train_fraction": 1.0}), digits)))
    assert epochs[-1].val_accuracy > 0.85
    assert [e.step for e in epochs] == [e.epoch for e in epochs] == [1, 2, 3, 4, 5]
    last = epochs[-1].numbers()
    assert set(last) == set(METRICS)
    assert {n for n, v in last.items() if v is None} == {
        "val_mean_iou",
        "val_dice",
        "val_map",
        "val_iou",
        "probe_area",
        "start_loss",
        *FOLDS,
    }
    recall = last.pop("val_recall")
    assert len(recall) == 10 and min(recall) == last["val_worst_recall"] > 0.5
    last = {n: v for n, v in last.items() if v is not None}
    assert all(math.isfinite(v) for v in last.values())
    assert last["weight_norm"] > 0
    assert all(
        0 <= last[n] <= 1
        for n in last
        if "accuracy" in n or n in ("val_ece", "val_macro_f1", "data_wait", "zero_weights")
    )
    assert last["grad_norm"] > 0 and last["images_per_second"] > 0 and last["peak_memory"] > 0
    assert epochs[0].lr > 0 and epochs[-1].lr < epochs[1].lr  # warm-up, then cosine
    assert last["image_ms"] > 0 and (last["dropout"], last["augment_strength"]) == (0.15, 0.3)
    assert last["parameters"] == sum(p.numel() for p in Run(SMALL, digits).model.module.parameters())


VARIANTS = {
    "adamw": {},
    "sgd, ema, clipped": {"optim.name": "sgd", "optim.ema": 0.9, "optim.clip_norm": 1.0},
    "mixed, accumulated": {"augment.mixup": 0.4, "augment.cutmix": 1.0, "optim.accumulate": 3, "data.batch_size": 20},
    "penalized, oversampled": {
        "regularize.l1": 1e-3,
        "regularize.l2": 1e-3,
        "data.oversample": 0.5,
        "optim.name": "rmsprop",
        "optim.lr": 1e-3,
    },
    "cut into reports": {"data.report_images": 130},
    "in parts": {"data.micro_batch": 24, "optim.lr_scaling": "linear"},
    "growing images": {"changes": [[2, {"data.image_size": 24}]]},
    "frozen, changed": {"model.freeze_epochs": 1, "changes": [[2, {"augment.strength": 0.9, "optim.lr": 1e-3}]]},
}


@pytest.mark.parametrize(("variant", "threads"), [*((name, 1) for name in VARIANTS), ("adamw", 2)])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    digits: Dataset, tmp_path: Path, variant: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    recipe = SMALL.replace(VARIANTS[variant])
    whole = [numbers(e) for e in train(Run(recipe, digits))]
    halves, first = [], Run(recipe, digits)
    for epoch in train(first):
        halves.append(numbers(epoch))
        if epoch.epoch == 2:
            checkpoint.save(tmp_path / "2", first.state_dict(), epoch.numbers())
            break
    torch.manual_seed(123)
    np.random.seed(123)
    second = Run(recipe, digits)
    state, _ = checkpoint.load(tmp_path / "2")
    second.load_state_dict(state)
    halves += [numbers(e) for e in train(second)]
    assert halves == whole


def test_workers_change_no_number(digits: Dataset) -> None:
    recipe = SMALL.replace({"max_epochs": 2})
    alone = [numbers(e) for e in train(Run(recipe, digits))]
    helped = [numbers(e) for e in train(Run(recipe, digits, workers=2))]
    assert alone == helped


def test_seeds_decide(digits: Dataset) -> None:
    one = SMALL.replace({"max_epochs": 1})
    a, b, c = (numbers(next(train(Run(r, digits)))) for r in (one, one, one.replace({"seed": 1})))
    assert a == b != c


def test_changes_reach_the_effective_numbers(digits: Dataset) -> None:
    recipe = SMALL.replace(
        {
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0,
            "changes": [[2, {"optim.lr": 5e-3, "regularize.weight_decay": 0.7}]],
        }
    )
    epochs = list(train(Run(recipe, digits)))
    assert [round(e.lr, 6) for e in epochs] == [0.01, 0.01, 0.005, 0.005]
    assert [e.weight_decay for e in epochs[2:]] == [0.7, 0.7] and epochs[0].weight_decay != 0.7


def test_a_pass_cut_into_reports_is_the_same_training(digits: Dataset) -> None:
    used = len(Run(SMALL, digits).used)
    whole = [numbers(e) for e in train(Run(SMALL, digits))]
    for all_of_them in (used, used + 100):
        recipe = SMALL.replace({"data.report_images": all_of_them})
        assert [numbers(e) for e in train(Run(recipe, digits))] == whole
    cut = SMALL.replace({"data.report_images": used // 4, "data.batch_size": 8, "max_epochs": 16})
    epochs = list(train(Run(cut, digits)))
    assert len(epochs) == 16  # four passes, with one rate schedule over all of them
    assert epochs[-1].lr < 0.02 * max(e.lr for e in epochs)
    assert epochs[-1].train_accuracy > 0.5 > epochs[0].train_accuracy


def test_stop_ends_between_batches_without_a_report(digits: Dataset) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    run = Run(SMALL, digits)
    epochs = list(train(run, stop))
    assert len(epochs) == run.epoch == 1  # once before the first step, six batches an epoch: the second was broken off
    assert asked == 11


def test_stop_breaks_off_the_evaluation_too(digits: Dataset) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 7

    run = Run(SMALL, digits)
    assert not list(train(run, stop))
    assert (asked, run.epoch, run.step) == (8, 0, 0)  # after the last of six batches, before the evaluation


# --- weights of another trial -----------------------------------------------------------------------------------

DONOR = SMALL.replace(
    {
        "seed": 7,
        "optim.name": "sgd",
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0,
        "optim.momentum": 0.9,
        "optim.clip_norm": 5.0,
        "regularize.dropout": 0.4,
        "regularize.drop_path": 0.2,
        "regularize.l2": 1e-3,
        "regularize.weight_decay": 0.1,
    }
)
MUTATED = {  # every value that may change in mid-training, to something that neither SMALL nor DONOR has
    "augment.strength": 0.7,
    "augment.geometry": 0.5,
    "augment.color": 0.6,
    "augment.quality": 0.4,
    "augment.occlusion": 0.3,
    "augment.mixup": 0.2,
    "augment.cutmix": 0.9,
    "regularize.strength": 0.8,
    "regularize.dropout": 0.25,
    "regularize.spatial_dropout": 0.15,
    "regularize.drop_path": 0.3,
    "regularize.label_smoothing": 0.05,
    "regularize.weight_decay": 0.7,
    "regularize.l2": 1e-4,
    "regularize.l1": 1e-5,
    "optim.lr": 3e-3,
    "optim.momentum": 0.5,
    "optim.clip_norm": 1.0,
}


@pytest.fixture(scope="module")
def donor(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of DONOR after two epochs."""
    torch.set_num_threads(1)
    run = Run(DONOR, digits)
    epochs = train(run)
    next(epochs), next(epochs)
    folder = tmp_path_factory.mktemp("donor") / "2"
    checkpoint.save(folder, run.state_dict(), {})
    return folder


def clone(recipe: Recipe, data: Dataset, donor: Path, step: int) -> Run:
    run = Run(recipe, data)
    run.load_state_dict(checkpoint.load(donor)[0])
    run.step = step
    return run


def test_mutated_values_rule_over_the_donors_state(digits: Dataset, donor: Path) -> None:
    assert set(MUTATED) == set(MUTABLE)
    run = clone(DONOR.replace(MUTATED | {"seed": 1}), digits, donor, step=5)
    epochs = list(train(run))
    assert [(e.step, e.epoch) for e in epochs] == [(6, 3), (7, 4)]  # max_epochs is the age of the weights
    told = ("lr", "weight_decay", "dropout", "augment_strength")
    assert [round(getattr(epochs[0], name), 9) for name in told] == [0.003, 0.7, 0.25, 0.7]
    in_force = dict(run.in_force())
    assert in_force.pop("data.image_size") == DONOR.data.image_size
    assert set(in_force) | {"regularize.strength"} == set(MUTABLE)
    assert {name: pytest.approx(MUTATED[name]) for name in in_force} == in_force


@pytest.mark.parametrize("name", MUTABLE)
def test_a_value_that_was_not_applied_is_noticed_before_the_first_batch(
    digits: Dataset, donor: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = DONOR.replace({"regularize.spatial_dropout": None, "changes": [[2, {name: MUTATED[name]}]]})
    run = clone(recipe, digits, donor, step=2)
    assert len(list(train(run))) == 2
    run = clone(recipe, digits, donor, step=2)
    monkeypatch.setattr(Run, "apply", lambda self, now: None)
    asked: list[bool] = []
    knob = "regularize.[a-z_]+" if name == "regularize.strength" else name
    with pytest.raises(NotInForce, match=f"^{knob} = .* at step 2, but the recipe says"):
        list(train(run, stop=lambda: bool(asked.append(True))))
    assert not asked


def test_a_momentum_that_the_donors_state_put_back_is_noticed(
    digits: Dataset, donor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(DONOR.replace({"optim.momentum": 0.5}), digits)
    run.check_in_force(resolve(run.recipe))
    monkeypatch.setattr(Stepper, "apply", lambda self, now: None)
    run.load_state_dict(checkpoint.load(donor)[0])
    with pytest.raises(NotInForce, match=r"optim.momentum = 0.9 is in force .* says 0.5"):
        next(train(run))


def test_noise_that_was_never_set_is_noticed(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "set_noise", lambda self, regularize: None)
    with pytest.raises(NotInForce, match=r"regularize.dropout = 0.0 is in force .* says 0.4"):
        next(train(Run(DONOR, digits)))


@pytest.mark.parametrize("architecture", ["small_resnet", "torchvision:mobilenet_v3_small"])
def test_every_single_place_of_noise_is_read_back(digits: Dataset, architecture: str) -> None:
    recipe = resolve(SMALL.replace({"data.image_size": 32, "model.name": architecture, "regularize.drop_path": 0.3}))
    run = Run(recipe, digits)
    run.check_in_force(recipe)
    for sites in (run.model._dropout, run.model._channels, *run.model._branches[1:]):
        before, sites[-1].p = sites[-1].p, 0.77
        with pytest.raises(NotInForce, match="is in force"):
            run.check_in_force(recipe)
        sites[-1].p = before
    run.check_in_force(recipe)


def test_clones_of_one_donor_part_and_each_repeats_bit_for_bit(digits: Dataset, donor: Path, tmp_path: Path) -> None:
    recipe = DONOR.replace({"seed": 1, "max_epochs": 4})
    mine, same, later, other = (
        [numbers(e) for e in train(clone(recipe.replace({"seed": seed}), digits, donor, step))]
        for seed, step in ((1, 5), (1, 5), (1, 6), (2, 5))
    )
    assert mine == same
    assert len({row[0]["train_loss"] for row in (mine, later, other)}) == 3
    run = clone(recipe, digits, donor, step=5)
    first = next(train(run))
    checkpoint.save(tmp_path / "6", run.state_dict(), first.numbers())
    again = Run(recipe, digits)
    again.load_state_dict(checkpoint.load(tmp_path / "6")[0])
    assert [numbers(first), *(numbers(e) for e in train(again))] == mine


def test_a_state_from_a_machine_without_a_scaler_is_taken_up(digits: Dataset) -> None:
    state = Run(SMALL, digits).state_dict()
    run = Run(SMALL, digits)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.load_state_dict(state)
    assert run.scaler.get_scale() == 1024.0


# --- ends -------------------------------------------------------------------------------------------------------


def test_a_rate_far_too_high_gives_an_epoch_that_says_so(digits: Dataset) -> None:
    recipe = SMALL.replace({"optim.name": "sgd", "optim.lr": 100.0, "optim.warmup_epochs": 0, "model.norm": "none"})
    assert any(not e.is_finite() for e in train(Run(recipe, digits)))


def test_the_test_part_is_never_read(digits: Dataset) -> None:
    class Forbidden:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> np.ndarray:
            raise AssertionError("test was read")

    hidden = dataclasses.replace(digits, test=Part(Forbidden(), np.zeros(3, np.int64)))
    assert len(list(train(Run(SMALL.replace({"max_epochs": 1}), hidden)))) == 1


def test_the_test_images_are_scored_with_the_weights_that_are_kept(digits: Dataset) -> None:
    run = Run(SMALL.replace({"data.train_fraction": 1.0, "optim.ema": 0.8}), digits)
    list(train(run))
    asked: list[bool] = []
    scores, stored = score_test(run, stop=lambda: bool(asked.append(True)))
    labels, probabilities = digits.test.labels, stored["probabilities"]
    assert asked and stored["labels"].tolist() == labels.tolist()
    names = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece", "worst_recall", "recall")
    assert set(scores) == {f"test_{name}" for name in names}
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (len(labels), 10))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (
        scores["test_accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
        and scores["test_accuracy"] > 0.7
    )
    run.stepper._average = None  # the raw weights
    assert not np.array_equal(score_test(run)[1]["probabilities"], probabilities)


def test_predict_takes_the_images_asked_for_in_their_order(digits: Dataset) -> None:
    run = Run(SMALL, digits)
    logits, labels = predict(run, digits.val)
    assert (logits.dtype, logits.shape, logits.device.type) == (torch.float32, (len(digits.val.labels), 10), "cpu")
    assert labels.tolist() == digits.val.labels.tolist()
    few, their = predict(run, digits.val, indices=np.array([9, 2]))
    torch.testing.assert_close(few, logits[[9, 2]])
    assert their.tolist() == labels[[9, 2]].tolist()


def test_no_test_images_no_score(digits: Dataset) -> None:
    none = dataclasses.replace(digits, test=Part([], np.zeros(0, np.int64)))
    with pytest.raises(DataError, match="no test images"):
        score_test(Run(SMALL, none))


def test_l1_makes_weights_exactly_zero_and_the_share_is_reported(digits: Dataset) -> None:
    shares = [
        next(train(Run(SMALL.replace({"max_epochs": 1, "regularize.l1": l1}), digits))).zero_weights
        for l1 in (0.0, 0.3)
    ]
    assert shares[0] == 0.0 and shares[1] > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_too_and_takes_up_a_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    recipe = SMALL.replace({"data.train_fraction": 1.0, "max_epochs": 6, "optim.ema": 0.9})
    run = Run(recipe, digits)
    assert run.device.type == "cuda" and run.layout is torch.channels_last
    epochs = []
    for epoch in train(run):
        epochs.append(epoch)
        if epoch.epoch == 3:
            checkpoint.save(tmp_path / "3", run.state_dict(), epoch.numbers())
            break
    again = Run(recipe, digits)
    again.load_state_dict(checkpoint.load(tmp_path / "3")[0])
    epochs += list(train(again))
    assert [e.epoch for e in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].val_accuracy > 0.85 and 0 < epochs[-1].peak_memory < 4000
    assert 0 < epochs[-1].image_ms < 10


# --- batch size, memory and resolution


def test_a_batch_in_parts_is_the_same_training_without_batch_norm(digits: Dataset) -> None:
    """With group norm and no noise a step does not depend on how its batch is divided, but for rounding."""
    recipe = SMALL.replace({"model.norm": "group", "regularize.strength": None, "max_epochs": 2, "optim.name": "sgd"})
    whole = list(train(Run(recipe, digits)))
    divided = list(train(Run(recipe.replace({"data.micro_batch": 20}), digits)))
    for one, other in zip(whole, divided, strict=True):
        assert (one.micro_batch, other.micro_batch) == (64, 20)
        for name in ("train_loss", "val_loss", "grad_norm", "clean_loss"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3), name
        assert other.lr == one.lr


def test_memory_that_runs_out_costs_no_epoch_and_is_recorded(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that has no room for more than 20 images in training."""
    recipe = SMALL.replace({"model.norm": "group", "regularize.strength": None, "max_epochs": 2, "optim.name": "sgd"})
    told = [numbers(e) for e in train(Run(recipe.replace({"data.micro_batch": 16}), digits))]
    run = Run(recipe, digits)

    def tight(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training and len(inputs[0]) > 20:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(inputs[0])} images")

    run.model.module.register_forward_pre_hook(tight)
    found = [numbers(e) for e in train(run)]
    assert [e["micro_batch"] for e in found] == [16, 16]
    assert capsys.readouterr().out.count("out of memory") == 2  # 64, 32
    assert found == told  # bit for bit what asking for parts of 16 gives


def test_images_grow_during_training_and_are_scored_at_their_last_size(digits: Dataset) -> None:
    recipe = SMALL.replace(
        {"data.image_size": 8, "changes": [[1, {"data.image_size": 16}], [3, {"data.image_size": 32}]]}
    )
    assert recipe.image_sizes == (8, 16, 32) and recipe.largest.image_size == 32
    run, seen = Run(recipe, digits), list[tuple[bool, int]]()
    run.model.module.register_forward_pre_hook(lambda m, x: seen.append((m.training, x[0].shape[-1])))
    sizes = []
    for epoch in train(run):
        trained = {side for training, side in seen if training}
        assert len(trained) == 1 and {side for training, side in seen if not training} == {32}
        sizes.append((trained.pop(), dict(run.in_force())["data.image_size"]))
        seen.clear()
        assert math.isfinite(epoch.val_loss)
    assert sizes == [(8, 8), (16, 16), (16, 16), (32, 32)]
    built = Run(SMALL.replace({"data.image_size": 32}), digits).model.module
    assert str(built) == str(run.model.module)  # built for the largest size


@pytest.mark.parametrize("batch", [2, 7, 64, 5000])
def test_every_batch_size_trains(digits: Dataset, batch: int) -> None:
    recipe = SMALL.replace(
        {"data.batch_size": batch, "max_epochs": 1, "data.train_fraction": 0.1, "optim.lr_scaling": "sqrt"}
    )
    (epoch,) = train(Run(recipe, digits))
    assert math.isfinite(epoch.train_loss) and epoch.micro_batch == batch


def test_what_fits_into_memory_is_found_once_and_holds_for_scores_and_resumed_runs(digits: Dataset) -> None:
    run, asked = Run(SMALL, digits), list[int]()
    run.micro.size = 50  # as after memory ran out
    again = Run(SMALL, digits)
    again.load_state_dict(run.state_dict())
    assert again.micro.size == 50
    hook = again.stepper.evaluated.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    predict(again, digits.val)
    hook.remove()
    assert max(asked) == 50 and sum(asked) == len(digits.val.labels)
    old = {name: value for name, value in run.state_dict().items() if name != "micro_batch"}
    fresh = Run(SMALL, digits)
    fresh.load_state_dict(old)
    assert fresh.micro.size is None
