"""Recipe: names, ranges, changes."""

import pytest

from cvtune.errors import ConfigError
from cvtune.recipe import FIELDS, MUTABLE, Recipe
from cvtune.schedulers import PBT
from cvtune.space import Choice, space


def test_every_field_is_documented_and_has_a_default_that_is_valid() -> None:
    assert all(doc.description.endswith(".") for doc in FIELDS.values())
    assert Recipe().replace(Recipe().flat()) == Recipe()


def test_flat_names_are_the_fields() -> None:
    assert set(Recipe().flat()) == set(FIELDS)
    assert {"augment.strength", "regularize.weight_decay", "optim.lr", "max_epochs"} <= set(FIELDS)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("augment.strenght", 0.5, "Did you mean 'augment.strength'?"),
        ("lrr", 0.5, "Did you mean 'optim.lr'?"),
        ("augment.strength", 1.5, "augment.strength = 1.5: input should be less than or equal to 1"),
        ("augment.strength", float("nan"), "augment.strength = nan"),
        ("optim.name", "adamx", "'sgd', 'adam', 'adamw', 'adagrad' or 'rmsprop'"),
        ("model.name", "smal_resnet", "Did you mean 'small_resnet'?"),
        ("model.name", "python:no_function", "python:module:function"),
        ("augment.policy", "familys", "Did you mean 'families'?"),
        ("loss.name", "entropy", "cross_entropy"),
        ("data.batch_size", 1, "data.batch_size = 1"),
        ("data.report_images", 7, "data.report_images = 7: input should be greater than or equal to 8"),
        ("optim.lr", "fast", "optim.lr = 'fast'"),
    ],
)
def test_a_wrong_name_or_value_says_what_is_valid(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Recipe().replace({name: value})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_changes_apply_from_their_epoch_on() -> None:
    recipe = Recipe().replace({"max_epochs": 9, "changes": [[2, {"optim.lr": 0.5}], [5, {"augment.strength": 0.9}]]})
    assert [recipe.at(e).optim.lr for e in (0, 1, 2, 8)] == [0.002, 0.002, 0.5, 0.5]
    assert [recipe.at(e).augment.strength for e in (4, 5)] == [0.3, 0.9]
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([[3, {"optim.lr": 0.5}], [2, {"optim.lr": 0.1}]], "must rise"),
        ([[0, {"optim.lr": 0.5}]], "between 1 and max_epochs"),
        ([[27, {"optim.lr": 0.5}]], "between 1 and max_epochs"),
        ([[3, {"optim.name": "sgd"}]], "cannot change during training"),
        ([[3, {"optim.lr": -1}]], "optim.lr = -1"),
    ],
)
def test_changes_that_cannot_be_are_refused(changes: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe().replace({"changes": changes})


def test_what_may_change_in_mid_training_covers_both_axes() -> None:
    assert {"augment.strength", "regularize.strength", "regularize.dropout", "optim.lr"} <= set(MUTABLE)
    assert not {"model.name", "data.batch_size", "optim.name", "data.image_size"} & set(MUTABLE)


def test_images_may_grow_by_plan_but_not_in_a_population() -> None:
    recipe = Recipe().replace({"data.image_size": 64, "changes": [[3, {"data.image_size": 96}], [5, {"optim.lr": 1}]]})
    assert recipe.image_sizes == (64, 96, 96) and recipe.largest == recipe.data.model_copy(update={"image_size": 96})
    assert Recipe().largest == Recipe().data
    refused = PBT().refusal(space({"data.image_size": Choice(64, 96)}), 9, "random", 8)
    assert refused is not None and "'data.image_size' is searched, but cannot change" in refused
