"""LightningModules as they are: what they get, what they report, how they go on, and what is refused."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="Lightning is an extra: uv sync, or pip install 'cvtune[lightning]'")
import pytorch_lightning as pl

from cvtune import checkpoint, loops, preflight, study
from cvtune.data import Dataset, open_dataset
from cvtune.errors import ConfigError
from cvtune.lightning import lightning_loop
from cvtune.own_loop import Run, score_test, train
from cvtune.recipe import Recipe
from cvtune.study import for_data

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"data.image_size": 16, "augment.flip": "none", "data.train_fraction": 0.3, "max_epochs": 3}
ARGUMENTS = {"rate": "optim.lr", "hidden": "model.width"}
METRICS = {"val_loss": "val_loss", "val_acc": "val_accuracy"}


class Net(pl.LightningModule):
    """Linear, with a dropout and a rate that falls by half in each epoch. Keeps what it was given."""

    seen: list[Any] = []

    def __init__(self, num_classes: int, rate: float = 0.1, hidden: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(
            *(torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(3 * 16 * 16, hidden), torch.nn.ReLU()),
            torch.nn.Linear(hidden, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        Net.seen.append(batch)
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self(batch[0])
        self.log("val_loss", torch.nn.functional.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Manual(Net):
    """Returns no loss and logs it under a name of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.automatic_optimization = False
        self.log("mine", 3.0, on_epoch=True, on_step=False)


net = lightning_loop(Net, ARGUMENTS, METRICS)
manual = lightning_loop(Manual, ARGUMENTS, {**METRICS, "mine": "train_loss"})
silent = lightning_loop(Net, ARGUMENTS, {"val_loss": "val_loss", "val_f1": "val_macro_f1"})
no_loss = lightning_loop(Manual, ARGUMENTS, METRICS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    settings = for_data("digits").set(SMALL)
    return open_dataset(settings.data, settings.recipe.data, tmp_path_factory.mktemp("cache"), None, 1)


def recipe(name: str = "net", **values: Any) -> Recipe:
    return Recipe().replace({**SMALL, "train.loop": f"python:{__name__}:{name}", "model.width": 8, **values})


def test_it_trains_from_the_recipe_to_the_last_epoch(data: Dataset) -> None:
    run = Run(recipe(**{"optim.lr": 0.01, "model.width": 12, "augment.strength": 0.0}), data)
    epochs = list(train(run))
    assert [(e.step, e.epoch) for e in epochs] == [(1, 1), (2, 2), (3, 3)]
    assert [e.lr for e in epochs] == pytest.approx([0.01, 0.005, 0.0025]), "its own rate schedule goes on"
    assert epochs[0].parameters == (3 * 16 * 16 + 1) * 12 + 13 * 10
    assert epochs[0].val_loss > epochs[2].val_loss and epochs[2].val_accuracy > 0.25, "chance is 0.1"
    metrics, stored = score_test(run)
    assert metrics["test_accuracy"] > 0.25 and np.allclose(stored["probabilities"].sum(1), 1, atol=1e-5)


def test_the_augmentation_of_the_recipe_reaches_the_module(data: Dataset) -> None:
    made = {}
    for strength in (0.0, 1.0):
        Net.seen = []
        next(train(Run(recipe(**{"augment.strength": strength, "data.batch_size": 32}), data)))
        made[strength] = Net.seen
    plain, strong = (torch.cat([x for x, _ in batches]) for batches in made.values())
    assert plain.shape == strong.shape == (len(plain), 3, 16, 16) and plain.dtype == torch.float32
    assert [len(y) for _, y in made[0.0]][:-1] == [32] * (len(made[0.0]) - 1)
    same = torch.equal(torch.cat([y for _, y in made[0.0]]), torch.cat([y for _, y in made[1.0]]))
    assert same and (plain - strong).abs().mean() > 0.3
    assert plain.min() > -2.2 and plain.max() < 2.7, "normalized as ImageNet is"


def test_a_lost_process_goes_on_bit_for_bit_from_lightnings_own_checkpoint(data: Dataset, tmp_path: Path) -> None:
    run, whole = Run(recipe(), data), []
    for epoch in train(run):
        whole.append(epoch)
        if epoch.step == 1:
            checkpoint.save(tmp_path / "1", run.state_dict(), epoch.numbers())
    again = Run(recipe(), data)
    again.load_state_dict(checkpoint.load(tmp_path / "1")[0])
    assert "optimizer_states" in again.state and "hyper_parameters" not in again.state
    timed = {"seconds", "peak_memory"}
    for mine, theirs in zip(train(again), whole[1:], strict=True):
        assert {k: v for k, v in mine.numbers().items() if k not in timed} == {
            k: v for k, v in theirs.numbers().items() if k not in timed
        }


def test_it_stops_at_the_next_batch_and_reports_nothing(data: Dataset) -> None:
    Net.seen = []
    asked = iter([False] * 4 + [True] * 100)
    assert list(train(Run(recipe(), data), stop=lambda: next(asked))) == []
    assert 0 < len(Net.seen) <= 4


def test_a_module_that_logs_its_own_training_loss(data: Dataset) -> None:
    assert next(train(Run(recipe("manual"), data))).train_loss == 3.0


@pytest.mark.parametrize(
    ("name", "said"), [("silent", r"logged no 'val_f1'.*val_acc"), ("no_loss", "returned no loss")]
)
def test_a_metric_that_is_not_logged_is_said(data: Dataset, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        next(train(Run(recipe(name), data)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((Net, {"rat": "optim.lr"}, METRICS), "no argument 'rat'.*Did you mean 'rate'"),
        ((Net, {"rate": "optim.rl"}, METRICS), r"Did you mean 'optim\.lr'"),
        ((Net, ARGUMENTS, {"val_loss": "val_los"}), "Did you mean 'val_loss'"),
        ((Net, ARGUMENTS, {"val_acc": "val_accuracy"}), "'val_loss'"),
        ((Net, ARGUMENTS, METRICS, "classes"), "no argument 'classes'"),
        ((Net, ARGUMENTS, METRICS, "num_classes", {"max_epochs": 3}), "'max_epochs' follows from the study"),
        ((torch.nn.Linear, {}, METRICS), "no LightningModule"),
    ],
)
def test_what_does_not_fit_together_is_refused_when_it_is_made(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lightning_loop(*arguments)


def test_it_honors_its_arguments_and_the_batches_and_only_these_can_change() -> None:
    workflow = study.load(str(ROOT / "workflows" / "lightning.py"))
    assert loops.check(workflow) == ("python:lightning_net:Net",)
    with pytest.raises(ConfigError, match=r"regularize\.l1 \(set\)"):
        loops.check(workflow.set({"regularize.l1": 1e-4}))
    with pytest.raises(ConfigError, match=r"optim\.lr, regularize\.dropout \(changed during training\)"):
        loops.check(workflow.set({"scheduler.name": "pbt", "budget.trials": 4}))


def test_the_workflow_passes_the_check_before_the_first_trial_and_its_module_is_hashed(tmp_path: Path) -> None:
    prepared = preflight.prepare(study.load(str(ROOT / "workflows" / "lightning.py")), tmp_path)
    assert set(prepared.code) == {"python:lightning_loop:train", "python:lightning_net:Net"}


def test_the_module_knows_nothing_of_cvtune() -> None:
    assert "import cvtune" not in (ROOT / "workflows" / "lightning_net.py").read_text()
    assert "from cvtune" not in (ROOT / "workflows" / "lightning_net.py").read_text()


@pytest.mark.slow
def test_a_module_of_the_package_lightning_will_do_and_no_task_of_slurm_is_taken_for_its_own(tmp_path: Path) -> None:
    """In a process of its own: a folder with a file `lightning.py` may be on this one's path."""
    pytest.importorskip("lightning_fabric")
    source = Path(__file__).read_text().partition("class Net(")[2].partition("class Manual(")[0]
    head = "import json, sys\nfrom pathlib import Path\nfrom typing import Any\nimport lightning as pl\nimport torch\n"
    (tmp_path / "own.py").write_text(
        f"{head}import cvtune.lightning\n\n\nclass Net({source}"
        f"net = cvtune.lightning.lightning_loop(Net, {ARGUMENTS!r}, {METRICS!r})\n"
    )
    script = f"""
        import json
        from pathlib import Path
        from cvtune import Recipe
        from cvtune.data import open_dataset
        from cvtune.own_loop import Run, train
        from cvtune.study import for_data

        settings = for_data("digits").set({SMALL!r})
        data = open_dataset(settings.data, settings.recipe.data, Path("cache"), None, 1)
        recipe = Recipe().replace({{**{SMALL!r}, "model.width": 8, "train.loop": "python:own:net"}})
        print(json.dumps([epoch.val_loss for epoch in train(Run(recipe, data))]))
    """
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "study", "SLURM_PROCID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, **slurm, "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads(done.stdout.splitlines()[-1])
    assert len(losses) == 3 and losses[2] < losses[0]
