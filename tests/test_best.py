"""`best/`: the weights that were tested, what is said of them, the recipe as a workflow, and predictions from it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from typer.testing import CliRunner

from cvtune import best, checkpoint, lease, model_file, onnx_file, study
from cvtune.card import command, plain
from cvtune.cli import app
from cvtune.durable import read_json
from cvtune.errors import ConfigError, CvtuneError
from cvtune.recipe import Recipe
from cvtune.sections import Budget, Confirm, Source
from cvtune.space import Uniform, space
from cvtune.study import Study
from cvtune.trained import Model
from cvtune.workflow import workflow_of
from tests.finished import TINY, Finished, finish

SEARCHED = [{"augment.strength": 0.1}, {"augment.strength": 0.6}]
ODD = {"0": "<img src=x onerror=alert(1)>", "1": "a|b *c*", "2": "_d_"}  # names that Markdown and HTML would take


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two trials and their confirmation, two seeds of each recipe; weights that are evaluated are an average."""
    small = Study(
        name="small",
        objective="val_accuracy",
        data=Source(source="digits", classes=ODD),
        recipe=Recipe().replace({**TINY, "optim.ema": 0.5}),
        space=space({"augment.strength": Uniform(0, 1)}),
        confirm=Confirm(top=1, seeds=2),
    )
    return finish(small, tmp_path_factory.mktemp("studies"), SEARCHED)


@pytest.fixture
def copy(done: Finished, tmp_path: Path) -> Path:
    """The study's folder, to be damaged."""
    return Path(shutil.copytree(done.folder, tmp_path / "studies" / "small"))


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and what else is said, an error of ours included."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CvtuneError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def winner(done: Finished) -> str:
    """The seed of the winner that is best on the validation images."""
    label = done.history.winners[-1]["label"]
    seeds = [r for r in done.history.of("confirm") if r.label == label]
    return max(seeds, key=lambda r: float(r.epochs[-1]["val_accuracy"])).trial


def test_the_weights_are_those_that_were_tested(done: Finished) -> None:
    model, trial = Model(done.folder / "best"), winner(done)
    images = done.data.test.images
    made = model.logits([images[i] for i in range(len(images))]).softmax(1)
    stored = done.test_of(trial)
    assert np.allclose(made, stored["probabilities"], atol=1e-5)
    metrics = read_json(done.folder / "best" / "metrics.json") or {}
    assert metrics["weights"]["trial"] == metrics["trial"] == trial
    assert metrics["weights"]["confirmed"] and metrics["weights"]["seeds"] == 2
    right = (made.argmax(1).numpy() == stored["labels"]).mean()
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    plain_weights = load_file(done.folder / "best" / "model.safetensors")
    assert plain_weights.keys() == done.runs[trial].model.module.state_dict().keys()


WITHOUT_TORCH = """
import sys
from pathlib import Path
from cvtune import best, study
from cvtune.history import load

folder = Path(sys.argv[1])
best.write_best(study.read(folder / "study.json"), folder, load(folder))
assert "torch" not in sys.modules
"""


def test_the_driver_takes_them_out_of_the_checkpoint_without_torch(copy: Path) -> None:
    """Importing it would take seconds at the end of each run."""
    file = copy / "best" / "model.safetensors"
    before = load_file(file)
    file.unlink()
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(copy)], check=True)
    after = load_file(file)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_a_file_of_weights_holds_tensors_of_any_type_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"w": torch.arange(6).view(2, 3).to(dtype), "count": torch.tensor(1).to(dtype), "none": torch.empty(0)}
    state = {"model": tensors, "stepper": {"ema": {}}}
    checkpoint.save(tmp_path / "1", state, {})
    packed, pixels = checkpoint.evaluated(tmp_path / "1", packed=True)
    about = model_file.About("classify", ("a", "\u00e9" * 3), Recipe())
    model_file.save(tmp_path / "model.safetensors", about, packed)
    found = load_file(tmp_path / "model.safetensors")
    assert model_file.read(tmp_path / "model.safetensors") == about and not pixels
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_metrics_have_intervals_and_the_seeds(done: Finished) -> None:
    metrics = read_json(done.folder / "best" / "metrics.json") or {}
    record = done.history.trials[metrics["trial"]]
    assert record.test is not None
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss", "ece"):
        told = metrics["test"][name]
        assert told["value"] == pytest.approx(record.test[f"test_{name}"], abs=1e-6)
        assert told["low"] < told["value"] < told["high"]
        assert record.test[f"test_{name}"] in metrics["seeds"][f"test_{name}"]
        assert len(metrics["seeds"][f"test_{name}"]) == 2
    assert metrics["val_accuracy"] == record.epochs[-1]["val_accuracy"]


def test_classes_and_confusion_are_as_scikit_learn_counts_them(done: Finished) -> None:
    stored = done.test_of(winner(done))
    predicted, labels = stored["probabilities"].argmax(1), stored["labels"]
    precision, recall, _, support = precision_recall_fscore_support(labels, predicted, zero_division=0)
    told = rows(done.folder / "best" / "per_class.csv")
    assert [row["class"] for row in told] == list(done.data.classes)
    assert {row["part"] for row in told} == {"test"}
    assert [int(row["support"]) for row in told] == list(support)
    assert np.allclose([float(row["precision"] or 0) for row in told], precision)
    assert np.allclose([float(row["recall"] or 0) for row in told], recall)
    counts = rows(done.folder / "best" / "confusion.csv")
    assert [row.pop("true class") for row in counts] == list(done.data.classes)
    assert np.array_equal([[int(n) for n in row.values()] for row in counts], confusion_matrix(labels, predicted))


def test_the_card_tells_what_a_reader_needs_and_names_stay_text(done: Finished) -> None:
    card = (done.folder / "best" / "README.md").read_text()
    metrics = read_json(done.folder / "best" / "metrics.json") or {}
    for told in (done.data.fingerprint, f"{metrics['test']['accuracy']['value']:.4f}", "cvtune predict", "2 seeds"):
        assert told in card
    assert "<img" not in card and plain(ODD["0"]) in card and r"a\|b \*c\*" in card
    assert "| `augment.flip` | none | horizontal |" in card


def test_best_is_written_whole_or_not_at_all(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (copy / "best").iterdir()}

    def full(card: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best, "write_card", full)
    with pytest.raises(OSError, match="No space"):
        best.write_best(study.read(copy / "study.json"), copy, best_history(copy))
    assert {path.name: path.read_bytes() for path in (copy / "best").iterdir()} == before
    assert not list(copy.glob(".*"))


def best_history(folder: Path) -> Any:
    from cvtune.history import load

    return load(folder)


def test_without_an_intact_checkpoint_there_are_no_weights_and_it_is_said(copy: Path) -> None:
    trial = (read_json(copy / "best" / "metrics.json") or {})["trial"]
    for tensors in (copy / "trials" / trial).glob(f"*/checkpoints/*/{checkpoint.TENSORS}"):
        tensors.write_bytes(tensors.read_bytes()[:-1])
    best.write_best(study.read(copy / "study.json"), copy, best_history(copy))
    assert not (copy / "best" / "model.safetensors").exists()
    assert "There are none" in (copy / "best" / "README.md").read_text()
    code, _, said = call("predict", "small", "x.jpg", "--storage", str(copy.parent))
    assert code == 2 and "x.jpg" in said  # what is wrong with the call comes first
    code, _, said = call("predict", "small", str(copy / "study.json"), "--storage", str(copy.parent))
    assert code == 2 and "no weights" in said and "differs from what was written" in said


def test_a_study_without_best_gets_one_unless_it_runs(copy: Path) -> None:
    shutil.rmtree(copy / "best")
    held = lease.Lease(copy)
    assert call("best", "small", "--storage", str(copy.parent))[0] == 5
    held.release()
    code, text, _ = call("best", "small", "--storage", str(copy.parent))
    assert code == 0 and "def study" in text and (copy / "best" / "model.safetensors").is_file()


def test_a_study_begun_before_tasks_were_noted_still_has_its_task(copy: Path) -> None:
    content = json.loads((copy / "study.json").read_text())
    del content["provenance"]["task"]
    (copy / "study.json").write_text(json.dumps(content))
    best.write_best(study.read(copy / "study.json"), copy, best_history(copy))
    assert Model(copy / "best", "cpu").about.task == "classify"
    assert best._task_of({"val_mean_iou": 0.0, "val_map": None}) == "segment"
    assert best._task_of({"val_mean_iou": None, "val_map": 0.5}) == "multilabel"


def test_an_unconfirmed_best_says_so(tmp_path: Path) -> None:
    recipe = Recipe().replace({**TINY, "max_epochs": 1, "data.train_fraction": 0.05})
    plain_study = Study(name="bare", objective="val_accuracy", recipe=recipe, confirm=Confirm(top=0))
    bare = finish(plain_study, tmp_path, [{}], confirmed=False)
    metrics = read_json(bare.folder / "best" / "metrics.json") or {}
    assert "test" not in metrics and not metrics["weights"]["confirmed"]
    assert "nothing was confirmed" in (bare.folder / "best" / "README.md").read_text()
    told = rows(bare.folder / "best" / "per_class.csv")
    assert [float(row["recall"]) for row in told] == metrics["val_recall"]
    assert {row["part"] for row in told} == {"val"} and not (bare.folder / "best" / "confusion.csv").exists()


# The recipe as a workflow


def test_the_workflow_is_the_recipe(done: Finished, tmp_path: Path) -> None:
    code, text, _ = call("best", str(done.folder))
    assert code == 0
    (tmp_path / "w.py").write_text(text)
    again = study.load(str(tmp_path / "w.py"))
    found = json.loads((done.folder / "best" / "recipe.json").read_text())
    assert again.recipe == Recipe.model_validate({**found, "seed": done.study.recipe.seed})
    assert again.data == done.study.data and again.objective == "val_accuracy" and not again.space.domains
    assert again.budget == Budget(trials=1) and again.name == "small-best"


def test_a_workflow_keeps_changes_and_odd_texts(tmp_path: Path) -> None:
    recipe = Recipe().replace({"changes": ((2, {"augment.strength": 0.5}), (4, {"data.image_size": 160}))})
    source = Source(source='C:\\odd "folder"\u00e9', classes={'"a"': None, "b": "c"}, val_share=0.2)
    odd = Study(name="x" * 100, data=source, recipe=recipe, objective="val_loss")
    (tmp_path / "w.py").write_text(workflow_of(odd, recipe, 'trial """ \\'), encoding="utf-8")
    again = study.load(str(tmp_path / "w.py"))
    assert again.recipe == recipe and again.data == source and len(again.name) == 100


def test_best_as_json(done: Finished) -> None:
    told = json.loads(call("best", str(done.folder), "--json")[1])
    assert told["recipe"]["model"]["width"] == 4 and told["metrics"]["test"]["images"] == len(done.data.test.labels)
    assert told["comparison"]["winner"] == done.history.winners[-1]["label"]


def test_a_wrong_name_is_helped(done: Finished) -> None:
    code, _, said = call("best", "smal", "--storage", str(done.folder.parent))
    assert code == 2 and "Did you mean 'small'?" in said


# ONNX


class Undecided(torch.nn.Module):
    """What it computes depends on the values in a batch: no graph can hold that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if float(x.sum().item()) > 0 else x.amax((2, 3))


def test_onnx_says_what_torch_says(copy: Path, done: Finished) -> None:
    import onnxruntime

    images = [done.data.test.images[i] for i in range(5)]
    model, path = Model(copy / "best", "cpu"), copy / "best" / "model.onnx"
    assert onnx_file.export(model, path, images) <= onnx_file.TOLERANCE
    session = onnxruntime.InferenceSession(path)
    assert np.allclose(session.run(None, {"images": model.batch(images).numpy()})[0], model.logits(images), atol=1e-4)


def test_a_network_that_cannot_be_exported_is_refused_by_name(copy: Path, done: Finished) -> None:
    model, path = Model(copy / "best", "cpu"), copy / "best" / "model.onnx"
    model.module = Undecided()
    with pytest.raises(ConfigError, match=r"small_resnet.*cannot be written as ONNX.*with torch instead"):
        onnx_file.export(model, path, [done.data.test.images[0]])
    assert not path.exists()


def test_a_model_of_a_newer_version_or_none_of_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not what cvtune notes"):
        Model(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"cvtune": json.dumps({"format": 99})})
    with pytest.raises(ConfigError, match="newer cvtune"):
        Model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        Model(tmp_path)


def test_the_command_of_a_card_names_no_place_of_this_machine() -> None:
    line = ["/home/me/.venv/bin/cvtune", "run", "photos", "--storage", "/home/me/studies", "--cache=/scratch/me"]
    told = command([*line, "--set", "max_epochs=9", "--name", "a b"])
    assert told == "cvtune run photos --set max_epochs=9 --name 'a b'"
    assert command([]) == "cvtune"
