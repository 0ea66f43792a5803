"""Which recipes `confirm.ablate` adds."""

from cvtune import Recipe
from cvtune.confirm import WITHOUT, without_one


def test_each_knob_that_is_on_is_left_out_once() -> None:
    recipe = Recipe().replace({"augment.mixup": 0.2, "augment.color": 0.0, "regularize.dropout": 0.1})
    found = without_one("00007", recipe)
    names = [label.removeprefix(WITHOUT).partition(" of ")[0] for label in found]
    assert all(label.endswith(" of 00007") for label in found)
    assert {"augment.geometry", "augment.mixup", "regularize.dropout", "regularize.weight_decay"} <= set(names)
    assert not {"augment.color", "augment.cutmix", "regularize.l1"} & set(names)
    for name, made in zip(names, found.values(), strict=True):
        changed = {key for key, value in made.flat().items() if value != recipe.flat()[key]}
        assert changed == {name} and made.flat()[name] == 0


def test_what_is_off_or_comes_back_is_not_left_out() -> None:
    plain = Recipe().replace({"augment.strength": 0.0, "regularize.strength": 0.0})
    assert without_one("00000", plain) == {}
    changing = Recipe().replace({"regularize.strength": 0.0, "changes": ((2, {"augment.color": 0.5}),)})
    assert "without augment.color of 00000" not in without_one("00000", changing)
