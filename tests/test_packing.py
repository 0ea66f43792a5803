"""How many trials share a GPU: the rule on made-up numbers, and what is learned from running out of memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cvtune import gauge, packing
from cvtune.actor import OPENED
from cvtune.data import open_dataset
from cvtune.device import allowed_bytes, limit_memory
from cvtune.domains import Choice, LogUniform
from cvtune.errors import ClusterError, ConfigError
from cvtune.history import load
from cvtune.journal import Journal
from cvtune.ledger import Ledger
from cvtune.on_gpu import OnGpu
from cvtune.packing import MOST, Need, choose, fewer, most_at_once, to_try
from cvtune.recipe import Recipe
from cvtune.space import space
from cvtune.study import Study, for_data
from cvtune.tune import Referee

GB = 10**9
STUDY = for_data("digits").set(
    {"model.width": 4, "max_epochs": 2, "resources.gpu": "auto", "data.batch_size": 8, "data.image_size": 16}
)


def need(peak: float, context: float = 0.5, total: float = 80) -> Need:
    return Need("the base recipe", int(peak * GB), int(context * GB), int(total * GB))


@pytest.mark.parametrize(
    ("peak", "cores", "cpu", "most"),
    [
        (3.1, 64, 1, MOST),
        (11.5, 64, 1, 6),  # 12 GB each in 72 of 80
        (3.1, 8, 2, 4),
        (3.1, 1, 2, 1),  # a trial alone may have more cores than a GPU's share of them
        (70, 64, 1, 1),
        (100, 64, 1, 1),  # in parts, where it does not fit
    ],
)
def test_memory_with_headroom_and_cores_bound_how_many_share_a_gpu(
    peak: float, cores: float, cpu: float, most: int
) -> None:
    assert most_at_once(need(peak), cores, cpu) == most


@pytest.mark.parametrize(("most", "tried"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_doubling_numbers_and_the_largest_are_tried(most: int, tried: list[int]) -> None:
    assert to_try(most) == tried


@pytest.mark.parametrize(
    ("rates", "trials"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 190.0, 4: 350.0, 8: 352.0}, 4),  # a GPU that is full gains nothing from more
        ({1: 100.0, 2: 102.0, 4: 104.0}, 1),
        ({1: 100.0, 2: 80.0, 4: 60.0}, 1),
        ({1: 100.0, 2: 120.0, 4: 240.0}, 4),
    ],
)
def test_the_fewest_that_come_near_the_best_rate_are_chosen(rates: dict[int, float], trials: int) -> None:
    found = choose(need(3.1), rates, cores=16, cpu=2)
    assert found.trials == trials and rates[trials] >= 0.95 * max(rates.values())
    assert found.share == 1 / trials
    assert "3.1 GB" in found.why and "16 cores for each GPU, 2 for each trial" in found.why and "1: 100" in found.why


# --- what is measured


def test_the_hungriest_corner_has_all_that_takes_memory_at_its_largest() -> None:
    domains = {
        "optim.name": Choice(("sgd", "adamw")),
        "optim.lr": LogUniform(1e-4, 1e-1),
        "data.batch_size": Choice((128, 32)),
        "data.micro_batch": Choice((8, None, 16)),
        "data.image_size": Choice((64, 16)),
    }
    searched = STUDY.model_copy(update={"space": space(domains)})
    names, recipes = zip(*gauge.hungry(searched), strict=True)
    assert names[0] == "the base recipe" and "optim.name = adamw" in names[2] and "optim.lr" not in names[2]
    assert [r.optim.name for r in recipes[1:]] == ["sgd", "adamw"]
    for recipe in recipes[1:]:
        assert (recipe.data.batch_size, recipe.data.micro_batch, recipe.data.image_size) == (128, None, 64)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """What a process of a trial is told, as far as it matters here."""
    OPENED.clear()
    data = open_dataset(STUDY.data, STUDY.recipe.data, tmp_path / "cache", None, 1)
    return {
        "roots": (),
        "folders": {},
        "cwd": str(Path.cwd()),
        "cpu": 1,
        "on_gpu": {},
        "mps": False,
        "source": STUDY.data.model_dump(mode="json"),
        "base": STUDY.recipe.model_dump(mode="json"),
        "cache": str(tmp_path / "cache"),
        "cache_bytes": None,
        "store": str(data.store),
        "fingerprint": data.fingerprint,
    }


class MadeUp:
    """Memory that grows by a GB with each recipe but the last."""

    def __init__(self) -> None:
        self.recipes = 0

    def begin(self) -> None:
        self.recipes += 1

    def held(self) -> tuple[int, int, int]:
        return (self.recipes if self.recipes < 3 else 1) * GB, GB // 2, 80 * GB


def test_the_recipe_that_takes_most_is_found_by_training_each(job: dict[str, Any]) -> None:
    searched = STUDY.model_copy(update={"space": space({"optim.name": Choice(("sgd", "adamw"))})})
    found, recipe = gauge.hungriest(job, searched, MadeUp())
    assert (found.peak, found.context, found.total) == (2 * GB, GB // 2, 80 * GB)
    assert recipe.optim.name == "sgd" and found.recipe == "optim.name = sgd"


@pytest.mark.long
def test_trials_at_once_are_timed_as_processes_of_their_own(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauge, "SECONDS", 0.5)
    rates = gauge.together(job, STUDY.recipe, [1, 2])
    assert set(rates) == {1, 2} and all(rate > 0 for rate in rates.values())
    with pytest.raises(ClusterError, match="no process could train"):
        gauge.together({**job, "fingerprint": "other"}, STUDY.recipe, [1])


def test_only_trials_that_are_timed_alone_try_kernels_out(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shared: dict[int, bool] = {}

    def timed(job: dict[str, Any], recipe: Recipe, numbers: list[int]) -> dict[int, float]:
        shared.update(dict.fromkeys(numbers, OnGpu(**job["on_gpu"]).shared))
        return dict.fromkeys(numbers, 1.0)

    monkeypatch.setattr(gauge, "_together", timed)
    gauge.together(job, STUDY.recipe, [1, 2, 4])
    assert shared == {1: False, 2: True, 4: True}


def test_a_gpu_that_torch_does_not_find_is_said(job: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match=r"torch finds none.*cvtune doctor"):
        gauge.answer(gauge.measure(job, STUDY.model_dump(mode="json"), 2.0))
    with pytest.raises(ConfigError, match="nothing"):
        gauge.answer({"error": "ConfigError", "message": "nothing"})
    assert gauge.answer({"trials": 3, "why": "so"}) == packing.Packing(3, "so")


def test_memory_is_limited_to_a_share_of_a_gpu_less_a_context_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    limit_memory(0.5)
    assert limits == []  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = SimpleNamespace(total_memory=10**10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    for share in (0.0, 1.0, 2.0, 0.5, 0.04):
        limit_memory(share)
    assert limits == pytest.approx([0.45, 0.02])


@pytest.mark.parametrize(("device", "number"), [("cuda", 1), ("cuda:0", 0)])
def test_what_may_be_used_is_that_of_the_trials_own_gpu(
    device: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)  # the rest is torch's own check of the device
    monkeypatch.setattr(torch._C, "_cuda_getMemoryFraction", {number: 0.5}.get, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    sizes = [SimpleNamespace(total_memory=8e9), SimpleNamespace(total_memory=10e9)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    assert allowed_bytes(torch.device(device)) == 0.5 * sizes[number].total_memory


def test_a_loop_of_the_users_own_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpu = 'auto' measures cvtune's own training loop"):
        STUDY.set({"train.loop": "python:own:train"})


# --- what is learned


def ledger(folder: Path, study: Study, term: int) -> Ledger:
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    made = Ledger(study, folder, Journal(folder / "journal" / f"{term:04d}.jsonl"), {"CPU": 1.0, "GPU": 1.0})
    saw = made.recover()
    made.note("open", {"term": term, **saw, "host": "here", "pid": 1, "resources": made.resources})
    return made


def ray_trial(name: str, gpu: float) -> Any:
    return SimpleNamespace(
        trial_id=name, config={"gpu": gpu}, max_failures=0, run_metadata=SimpleNamespace(num_failures=0)
    )


OOM = {"failure": "oom_gpu", "message": "CUDA out of memory"}


def test_out_of_memory_gives_all_later_trials_more_and_is_remembered(tmp_path: Path) -> None:
    book = ledger(tmp_path, STUDY, 1)
    book.note("share", packing.Packing(3, "measured").event())
    assert book.resources["GPU"] == 1 / 3
    names = [book.propose("search", book.suggest()).trial for _ in range(3)]
    referee = Referee(book, {}, lambda: 3)
    assert referee.room().required_resources == {"CPU": 1.0, "GPU": 1 / 3}

    for name in names[:2]:  # they ran beside each other: what the first has taught is not learned twice
        trial = ray_trial(name, 1 / 3)
        assert referee.on_trial_result(None, trial, dict(OOM)) == "CONTINUE" and trial.max_failures == 1
    assert book.resources["GPU"] == 1 / 2 and len(book.history.shares) == 2
    assert f"trial {names[0]} ran out of GPU memory where 3 shared" in book.history.shares[-1]["why"]
    assert all(record.reason is None for record in book.history.trials.values())
    assert referee.config(book.history.trials[names[0]])["gpu"] == 1 / 2
    book.close()

    again = ledger(tmp_path, STUDY, 2)  # what a later term does
    assert again.resources["GPU"] == 1 / 2 and again.history.packing == fewer(packing.Packing(3, ""), names[0])
    referee = Referee(again, {}, lambda: 3)
    assert referee.config(again.history.trials[names[0]])["widens"]
    referee.on_trial_result(None, ray_trial(names[0], 1 / 2), dict(OOM))
    assert again.resources["GPU"] == 1
    assert not referee.config(again.history.trials[names[0]])["widens"]  # alone it may be trained in parts
    alone = ray_trial(names[0], 1.0)
    referee.on_trial_result(SimpleNamespace(stop_trial=print), alone, dict(OOM))
    assert again.history.trials[names[0]].reason == "oom_gpu" and alone.max_failures == 0
    again.close()
    assert [event["trials"] for event in load(tmp_path).shares] == [3, 2, 1]


def test_a_share_that_was_set_by_hand_stays(tmp_path: Path) -> None:
    book = ledger(tmp_path, STUDY.set({"resources.gpu": 0.5}), 1)
    name = book.propose("search", book.suggest()).trial
    Referee(book, {}, lambda: 2).on_trial_result(None, ray_trial(name, 0.5), dict(OOM))
    assert book.history.trials[name].reason == "oom_gpu" and not book.history.shares
    book.close()
