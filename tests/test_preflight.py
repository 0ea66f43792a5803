"""The check before the first trial, where it is about sizes: one store for each, and models that take only one."""

from pathlib import Path

import pytest

from cvtune.errors import ConfigError
from cvtune.preflight import corners, prepare
from cvtune.recipe import Recipe
from cvtune.sections import Confirm
from cvtune.space import Choice, IntUniform, PerChoice, space
from cvtune.study import Study

BASE = Recipe().replace({"data.image_size": 16, "model.width": 4, "max_epochs": 6})
FIXED = """
from torch import nn

def model(num_classes, recipe):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
"""


def a_study(**fields: object) -> Study:
    return Study(**{"recipe": BASE, "confirm": Confirm(top=0), **fields})


def stores(cache: Path) -> int:
    return len(list(cache.glob("*.store")))


def test_each_size_that_is_searched_has_a_store_before_the_first_trial(tmp_path: Path) -> None:
    prepared = prepare(a_study(space=space({"data.image_size": Choice(8, 16, 24)})), tmp_path)
    assert stores(tmp_path) == 3 and prepared.store is not None
    assert len([notice for notice in prepared.notices if "objective" not in notice]) == 0


def test_images_that_grow_are_kept_once_for_their_largest_size(tmp_path: Path) -> None:
    grows = BASE.replace({"changes": [[2, {"data.image_size": 24}], [4, {"data.image_size": 32}]]})
    prepare(a_study(recipe=grows), tmp_path)
    assert stores(tmp_path) == 1
    prepare(a_study(recipe=BASE.replace({"data.image_size": 32})), tmp_path)
    assert stores(tmp_path) == 1  # it was the one of 32 px


def test_a_model_of_one_size_is_refused_by_name_where_images_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cvtune_test_fixed.py").write_text(FIXED)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = BASE.replace({"model.name": "python:cvtune_test_fixed:model", "data.image_size": 32})
    prepare(a_study(recipe=own), tmp_path)
    grows = own.replace({"data.image_size": 16, "changes": [[2, {"data.image_size": 32}]]})
    with pytest.raises(
        ConfigError, match=r"changes: model.name = 'python:cvtune_test_fixed:model' is built for its"
    ) as e:
        prepare(a_study(recipe=grows), tmp_path)
    assert "32 and cannot take 16 px" in str(e.value) and "small_resnet" in str(e.value)


SCORED = """
from torch import nn

class Half(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))

    def forward(self, x):
        if not self.training and len(x) == 4:  # a look at its shapes is not enough
            raise RuntimeError("nobody tried to score me")
        return self.layers(x)

def model(num_classes, recipe):
    return Half(num_classes)
"""


def test_a_network_that_trains_but_cannot_be_scored_is_found_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cvtune_test_half.py").write_text(SCORED)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"and scoring them failed with .*nobody tried to score me"):
        prepare(a_study(recipe=BASE.replace({"model.name": "python:cvtune_test_half:model"})), tmp_path)


def test_a_range_of_sizes_is_refused_unless_one_store_serves_them_all(tmp_path: Path) -> None:
    sizes = space({"data.image_size": IntUniform(8, 24)})
    with pytest.raises(ConfigError, match=r"decoded and kept once for every size\. Search a Choice"):
        a_study(space=sizes)
    by_norm = PerChoice("model.norm", {"batch": IntUniform(8, 24), "group": Choice(8, 16)})
    with pytest.raises(ConfigError, match="Search a Choice"):
        a_study(space=space({"model.norm": Choice("batch", "group"), "data.image_size": by_norm}))
    prepare(a_study(space=sizes, recipe=BASE.replace({"data.store_size": 24})), tmp_path)
    assert stores(tmp_path) == 1


def test_a_batch_size_is_searched_like_any_other_value() -> None:
    sizes = space({"data.batch_size": Choice(16, 64, 256), "optim.lr_scaling": Choice("none", "linear", "sqrt")})
    rates = {words: recipe.peak_lr / recipe.optim.lr for words, recipe in corners(a_study(space=sizes))}
    assert set(rates.values()) == {1.0}  # one at a time: the base recipe does not scale, or has the reference batch
    both = a_study(space=sizes).trial(0, {"data.batch_size": 256, "optim.lr_scaling": "linear"})
    assert both.peak_lr == pytest.approx(4 * both.optim.lr)


def test_values_that_fit_alone_but_not_together_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixed_nets.py").write_text(FIXED)
    monkeypatch.syspath_prepend(tmp_path)
    names, sizes = Choice("small_resnet", "python:fixed_nets:model"), Choice(16, 32)
    apart = {"recipe": BASE.replace({"data.image_size": 32}), "points": ()}
    prepare(a_study(**apart, space=space({"model.name": names})), tmp_path)
    prepare(a_study(**apart, space=space({"data.image_size": sizes})), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.name = 'python:fixed_nets:model' with data\.image_size = 16: "):
        prepare(a_study(**apart, space=space({"model.name": names, "data.image_size": sizes})), tmp_path)
