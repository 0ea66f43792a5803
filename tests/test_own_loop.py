"""Training loops of the user's own: what is refused beforehand, what a worker makes of them, and a study in earnest."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import cvtune
from cvtune import Choice, LogUniform, Recipe, Study, Uniform, checkpoint, loops, own_loop, preflight, space
from cvtune.actor import OPENED, TrialActor, score_test
from cvtune.data import Dataset, Part, open_dataset
from cvtune.errors import ConfigError
from cvtune.history import load
from cvtune.journal import Journal
from cvtune.own_loop import Run, train
from cvtune.study import for_data
from tests.invariants import check, marked

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "cvtune" / "docs" / "own_loop.md").read_text()
MODULE = "tests.loops_under_test"
SMALL = {"data.image_size": 16, "augment.flip": "none", "data.train_fraction": 0.3, "max_epochs": 3}


def loop(name: str) -> str:
    return f"python:{MODULE}:{name}"


def recipe(name: str, **values: Any) -> Recipe:
    return Recipe().replace({**SMALL, "train.loop": loop(name), **values})


def study(name: str, settings: dict[str, Any] | None = None, **searched: Any) -> Study:
    made = Study(recipe=recipe(name), space=space(searched or {"optim.lr": LogUniform(1e-3, 1e-2)}))
    return made.set({"confirm.top": 0, **(settings or {})})


# --- before the first trial


def test_what_a_loop_does_not_honor_is_refused_by_name() -> None:
    searched = {"optim.lr": LogUniform(1e-3, 1e-2), "regularize.dropout": Uniform(0, 0.5)}
    with pytest.raises(ConfigError, match=r"does not honor regularize\.dropout \(searched\); model\.width \(set\)"):
        loops.check(study("good", {"model.width": 8}, **searched))
    loops.check(study("good", {"data.batch_size": 8, "augment.strength": 0.5, "patience": 2, "seed": 3}))


def test_what_changes_during_training_must_be_honored_there() -> None:
    changed = {"changes": ((1, {"optim.momentum": 0.5}),)}
    with pytest.raises(ConfigError, match=r"optim\.momentum \(changed during training\).*honors during training"):
        loops.check(study("good", changed))
    population = {"scheduler.name": "pbt", "budget.trials": 4}
    loops.check(study("good", population))
    fixed = cvtune.loop(honors={"optim.lr", *cvtune.BATCHES}, mutable=cvtune.BATCHES)
    terms = fixed(lambda run: iter(())).terms  # type: ignore[attr-defined]
    assert "optim.lr" not in terms.mutable and "augment.strength" in terms.mutable and "optim.lr" in terms.honors


def test_a_candidate_is_held_to_its_own_loop() -> None:
    made = study("good", {"confirm.top": 1})
    other = made.model_copy(update={"candidates": {"mine": recipe("good", **{"optim.ema": 0.9})}})
    with pytest.raises(ConfigError, match=r"candidates: 'mine': .*optim\.ema \(set\)"):
        loops.check(other)
    assert loop("epochs") in Study(candidates={"mine": recipe("epochs")}).user_code


@pytest.mark.parametrize(
    ("name", "said"),
    [("undecorated", "Decorate the function"), ("forgetful", r"confirm\.top=0"), ("nowhere", "does not exist")],
)
def test_a_loop_that_cannot_do_what_is_asked_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loops.check(study(name, {"confirm.top": 1}))


def test_the_loop_itself_is_not_searched() -> None:
    with pytest.raises(ConfigError, match="candidates"):
        loops.check(study("good", **{"train.loop": Choice(loop("good"), loop("epochs"))}))


def test_a_loop_must_be_named_as_code() -> None:
    with pytest.raises(ConfigError, match=r"train\.loop = 'mine'.*python:module:function"):
        Recipe().replace({"train.loop": "mine"})


def test_unknown_names_hear_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"'optim\.rl'.*Did you mean 'optim\.lr'"):
        cvtune.loop(honors={"optim.rl"})
    with pytest.raises(ConfigError, match="Did you mean 'val_accuracy'"):
        cvtune.report_epoch(train_loss=1, val_loss=1, val_acuracy=0.5)
    with pytest.raises(ConfigError, match="fills this itself"):
        cvtune.report_epoch(train_loss=1, val_loss=1, step=3)
    with pytest.raises(ConfigError, match=r"shape \(3,\).*not one number"):
        cvtune.report_epoch(train_loss=torch.ones(3), val_loss=1)
    with pytest.raises(ConfigError, match=r"val_recall=.*str \('high'\) is not a list of numbers"):
        cvtune.report_epoch(train_loss=1, val_loss=1, val_recall="high")


def test_a_metric_of_single_classes_may_come_in_any_form_and_goes_into_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "0001.jsonl")
    for given in ([0.5, math.nan], torch.tensor([0.5, math.nan]), np.array([0.5, math.nan]), [0.5, None]):
        said = cvtune.report_epoch(train_loss=1, val_loss=1, val_recall=given)
        assert journal.append("epoch", dict(said.metrics)) and json.dumps(dict(said.metrics))
    lines = [json.loads(line) for line in (tmp_path / "0001.jsonl").read_text().splitlines()]
    assert [line["val_recall"] for line in lines] == [[0.5, None]] * 4


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("no_generator", {}, "returned int"),
        ("number", {}, "yielded float"),
        ("unknown_metric", {}, "val_accuracy"),
        ("odd_state", {}, r"state\['model'\]\[0\]\['seen'\] is set"),
        ("never_asks", {}, r"never asked run\.stop"),
        ("without_objective", {}, "does not report val_accuracy"),
        ("forgetful", {"limits.parameters": 1000}, "does not report parameters"),
        ("forgetful", {"scheduler.name": "hyperband"}, "reports no state"),
        ("cannot_resume", {}, "KeyError"),
        ("odd_predict", {}, r"shape \(1, 3\)"),
    ],
)
def test_a_loop_is_tried_on_few_images_before_the_first_trial(
    name: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        preflight.prepare(study(name, settings), tmp_path)


def test_the_source_of_a_loop_is_part_of_the_study(tmp_path: Path) -> None:
    prepared = preflight.prepare(study("good", {"confirm.top": 2, "scheduler.name": "pbt"}), tmp_path)
    assert list(prepared.code) == [loop("good")]


# --- on a worker


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    OPENED.clear()
    settings = for_data("digits").set(SMALL)
    data = open_dataset(settings.data, settings.recipe.data, tmp_path / "cache", None, 1)
    of_recipe = recipe("good").model_dump(mode="json", exclude_defaults=True)
    shared = {"source": settings.data.model_dump(mode="json"), "cache": str(tmp_path / "cache"), "cache_bytes": None}
    job = {
        "roots": (),
        "folders": {},
        "cwd": str(Path.cwd()),
        "cpu": 1,
        "on_gpu": {},
        "mps": False,
        "strip": 4,
        "hang_s": 600,
    }
    job |= {"gpu": 0, "widens": False}
    place = {"study": str(tmp_path / "study"), "trial": "00000", "halt": str(tmp_path / "halt"), "deadline": None}
    images = {"store": str(data.store), "fingerprint": data.fingerprint}
    return {
        **shared,
        **job,
        **place,
        **images,
        "recipe": of_recipe,
        "base": of_recipe,
        "known_step": 0,
        "exploit": None,
    }


@pytest.fixture
def actor(config: dict[str, Any]) -> Iterator[TrialActor]:
    made = TrialActor.__new__(TrialActor)  # without Ray's own set-up of folders and loggers
    threads = torch.get_num_threads()
    made.setup(config)
    yield made
    made.cleanup()
    torch.set_num_threads(threads)


def begin(actor: TrialActor, config: dict[str, Any], name: str, **more: Any) -> None:
    actor.reset_config({**config, "recipe": {**config["recipe"], "train": {"loop": loop(name)}}, **more})


def test_a_report_is_completed_and_what_nobody_knows_is_none(actor: TrialActor) -> None:
    report = actor.step()
    assert (report["step"], report["epoch"], report["val_loss"], report["val_accuracy"]) == (1, 1, 1.0, 0.5)
    assert report["augment_strength"] == 0.3 and report["seconds"] > 0 and report["peak_memory"] > 0
    assert report["val_ece"] is None and report["parameters"] is None and report["dropout"] is None
    assert json.dumps(report)


def test_a_loop_goes_on_from_its_last_state(actor: TrialActor, config: dict[str, Any]) -> None:
    reports = [actor.step() for _ in range(3)]
    actor.reset_config({**config, "known_step": 1})
    again = [actor.step() for _ in range(2)]  # the second report was lost on the way
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in reports[1:]]
    assert again[0]["attempt"] == 2 and reports[0]["train_loss"] < reports[1]["train_loss"]


def test_a_clone_takes_over_its_donors_state_with_new_values(actor: TrialActor, config: dict[str, Any]) -> None:
    actor.reset_config({**config, "trial": "00007"})
    donor = [actor.step() for _ in range(2)]
    actor.reset_config(config)
    actor.step()
    exploit = {"donor": "00007", "donor_step": 2, "step": 1, "attempt": 1}
    faster = {**config["recipe"], "optim": {"lr": 1.0}, "max_epochs": 4}
    actor.reset_config({**config, "recipe": faster, "known_step": 1, "exploit": exploit})
    report = actor.step()
    assert (report["step"], report["epoch"]) == (2, 3)
    images = donor[0]["train_loss"] / Recipe().optim.lr
    assert report["train_loss"] == pytest.approx(donor[1]["train_loss"] + images, rel=1e-4)


def test_a_loop_without_a_state_is_never_silently_trained_again(actor: TrialActor, config: dict[str, Any]) -> None:
    begin(actor, config, "forgetful")
    assert [actor.step()["step"] for _ in range(2)] == [1, 2]
    assert not list(checkpoint.newest(Path(config["study"]) / "trials" / "00000"))
    begin(actor, config, "forgetful")  # the driver has heard of no epoch
    assert actor.step()["step"] == 1
    begin(actor, config, "forgetful", known_step=2)
    result = actor.step()
    assert result["failure"] == "data_error" and "state=..." in result["message"]


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("no_generator", 0, "returned int"),
        ("number", 0, "yielded float"),
        ("goes_back", 1, "yielded step 1, epoch 1 after step 1, epoch 1"),
        ("ends_early", 1, "ended after epoch 1, but max_epochs = 3"),
        ("unknown_metric", 0, "val_acuracy"),
        ("many_numbers", 0, "not one number"),
        ("odd_state", 0, "is set"),
    ],
)
def test_nonsense_ends_the_trial_with_a_reason(
    actor: TrialActor, config: dict[str, Any], name: str, steps: int, said: str
) -> None:
    begin(actor, config, name)
    assert [actor.step()["step"] for _ in range(steps)] == list(range(1, steps + 1))
    result = actor.step()
    assert result["failure"] == "code_error" and said in result["message"]


def test_a_generator_of_epochs_will_do(actor: TrialActor, config: dict[str, Any]) -> None:
    begin(actor, config, "epochs")
    assert [actor.step()["step"] for _ in range(3)] == [1, 2, 3]


def test_a_halt_file_ends_a_loop_without_a_report(actor: TrialActor, config: dict[str, Any]) -> None:
    assert actor.step()["step"] == 1
    Path(config["halt"]).touch()
    actor.reset_config({**config, "known_step": 1})
    assert actor.step()["cut"] == "halt"
    assert not list(Path(config["study"]).rglob("*.png")), "such a loop has no strips"


def test_a_loop_that_predicts_is_scored_on_the_test_images(actor: TrialActor, config: dict[str, Any]) -> None:
    for _ in range(3):
        actor.step()
    metrics = score_test(config)
    with np.load(Path(config["study"]) / "trials" / "00000" / "test.npz") as content:
        hits = content["probabilities"].argmax(1) == content["labels"]
    assert metrics["test_accuracy"] == pytest.approx(hits.mean())


def test_a_loop_is_closed_when_its_trial_ends(tmp_path: Path) -> None:
    settings = for_data("digits").set(SMALL)
    data = open_dataset(settings.data, settings.recipe.data, tmp_path, None, 1)
    run, closed = Run(recipe("good"), data), []

    def function(run: Run) -> Iterator[cvtune.Report]:
        try:
            while True:
                yield cvtune.report_epoch(train_loss=1.0, val_loss=1.0)
        finally:
            closed.append(run.step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvtune.own_loop.load_function", lambda ref, what: function)
        assert [epoch.step for epoch in train(run)] == [1, 2, 3]
    assert closed == [3]


def masks_of(n: int, side: int) -> Part:
    """Random images, of which masks say where they are bright."""
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    return Part(list(images), np.zeros(n, np.int64), masks=[(image[..., 0] > 99).astype(np.uint8) for image in images])


def test_a_loop_evaluates_what_the_task_wants_at_the_size_of_the_last_epoch() -> None:
    parts = [masks_of(5, 32) for _ in range(3)]
    data = Dataset(("dark", "bright"), *parts, "x", (), (), None, "segment")
    grows = recipe("good", **{"data.image_size": 16, "changes": ((1, {"data.image_size": 32}),)})
    run = Run(grows, data)
    ((images, masks),) = run.evaluation(data.val)
    assert images.shape == (5, 32, 32, 3) and masks.dtype == torch.uint8
    assert torch.equal(masks, (images[..., 0] > 99).to(torch.uint8))
    assert {(x.shape[1], y.shape[1], y.dtype) for x, y in run.batches()} == {(16, 16, torch.uint8)}

    def predict(run: Run, part: Part) -> torch.Tensor:
        return torch.cat([F.one_hot(y.long(), 2).movedim(-1, 1).float() for _, y in run.evaluation(part)])

    run.terms, run.epoch = replace(run.terms, predict=predict), 3
    scores, stored = own_loop.score_test(run)
    assert scores["test_accuracy"] == 1 and stored["counts"].shape == (5, 2, 4)


def test_a_loop_evaluates_by_tags_where_there_are_any() -> None:
    tags = np.array([[1, 0], [0, np.nan], [1, 1]], np.float32)
    part = Part(list(np.zeros((3, 16, 16, 3), np.uint8)), np.zeros(3, np.int64), tags=tags)
    run = Run(recipe("good"), Dataset(("a", "b"), part, part, part, "x", (), (), None, "multilabel"))
    ((_, targets),) = run.evaluation(part)
    np.testing.assert_array_equal(targets, tags)


# --- in earnest


def write_example(folder: Path) -> None:
    """The two files of the page's example."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "my_loop.py").write_text(next(text for text in blocks if "def train(" in text))
    (folder / "my_study.py").write_text(next(text for text in blocks if "def study(" in text))


def start(folder: Path, mark: dict[str, str], *settings: str) -> subprocess.Popen[str]:
    options = [word for setting in settings for word in ("--set", setting)]
    places = ["--storage", str(folder / "studies"), "--cache", str(folder / "cache")]
    line = [sys.executable, "-m", "cvtune.cli", "run", "my_study.py", *options, *places]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CVTUNE_"))}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env={**alone, **mark}
    )


@pytest.mark.long
def test_the_pages_example_runs_and_survives_the_loss_of_a_process(tmp_path: Path) -> None:
    write_example(tmp_path)
    mark, folder = marked(), tmp_path / "studies" / "my_study"
    small = ("noise_seeds=0", "budget.trials=2", "scheduler.name=fifo", "max_epochs=12", "confirm.seeds=2")
    driver = start(tmp_path, mark, *small, "confirm.top=1")
    until = time.monotonic() + 600
    while True:
        assert driver.poll() is None and time.monotonic() < until, driver.communicate()[0]
        records = list(load(folder).trials.values()) if (folder / "journal").exists() else []
        if running := [r for r in records if 2 <= r.steps <= 8]:
            victim = running[0]
            break
        time.sleep(0.05)
    pids = [e["pid"] for e in events(folder) if e["kind"] == "segment" and e["trial"] == victim.trial]
    os.kill(pids[-1], signal.SIGKILL)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output[-3000:]
    history = check(folder, driver.returncode, mark)
    record = history.trials[victim.trial]
    assert (record.reason, record.steps, record.segment) == ("completed", 12, 1)
    assert "taken up after epoch" in "".join(p.read_text() for p in folder.glob(f"trials/{victim.trial}/*/log.txt"))
    epochs = pq.read_table(folder / "tables" / "epochs.parquet").to_pylist()
    assert {row["train.loop"] for row in epochs} == {"python:my_loop:train"}
    assert all(0 < row["val_ece"] < 1 and row["parameters"] is None for row in epochs)
    compared = json.loads((folder / "best" / "comparison.json").read_text())
    assert len(compared["recipes"]) == 2 and "trivial" not in {r["label"] for r in compared["recipes"]}
    assert max(r["mean"] for r in compared["recipes"]) > 0.7, "it has learnt"
    (tmp_path / "my_loop.py").write_text((tmp_path / "my_loop.py").read_text() + "\n# changed\n")
    again = start(tmp_path, mark, *small, "confirm.top=1", "budget.trials=3")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 2 and "my_loop" in output, output[-3000:]


def events(folder: Path) -> list[dict[str, Any]]:
    from cvtune.journal import read

    return list(read(folder))


@pytest.mark.long
def test_a_loop_whose_loss_is_nan_diverges(tmp_path: Path) -> None:
    (tmp_path / "my_loop.py").write_text((ROOT / "tests" / "loops_under_test.py").read_text())
    write_study = PAGE.split("`my_study.py` is the workflow:")[1]
    text = re.search(r"```python\n(.*?)```", write_study, re.DOTALL)
    assert text is not None
    nan = text[1].replace("my_loop:train", "my_loop:nan").replace('"model.width": 64,', "")
    (tmp_path / "my_study.py").write_text(nan)
    driver = start(tmp_path, {}, "noise_seeds=0", "budget.trials=1", "confirm.top=0")
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output[-3000:]
    (record,) = load(tmp_path / "studies" / "my_study").trials.values()
    assert (record.reason, record.steps) == ("diverged", 1) and "train_loss = nan" in record.message
