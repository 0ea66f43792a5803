"""What the rules in this folder share: a small network from scratch, and the rate that is tuned anew in every arm."""

from cvtune import FIFO, Budget, LogUniform, Recipe, Sobol, Study, space
from cvtune.recipe import Value

RATES = space({"optim.lr": LogUniform(3e-4, 2e-2)})
SLOW, FAST = {"optim.lr": 1e-3}, {"optim.lr": 1e-2}  # a factor of ten apart, both within RATES
WEAK, STRONG = {"augment.strength": 0.1}, {"augment.strength": 0.7}
LIGHT, HEAVY = {"regularize.strength": 0.02}, {"regularize.strength": 0.6}


def base(**values: Value) -> Study:
    """The study that every arm begins from. `values`: of the recipe, with `__` for the dot."""
    recipe = {"max_epochs": 20, "augment.strength": 0.3, "regularize.strength": 0.1}
    return Study(
        recipe=Recipe().replace(recipe | {name.replace("__", "."): value for name, value in values.items()}),
        scheduler=FIFO(),  # a slow rate must not lose for starting slower
        searcher=Sobol(),
        budget=Budget(trials=6),
    )


def crossed(one: dict[str, dict[str, Value]], other: dict[str, dict[str, Value]]) -> dict[str, dict[str, Value]]:
    """Arms of two factors: every level of one with every level of the other, named `<one>-<other>`."""
    return {f"{a}-{b}": {**x, **y} for a, x in one.items() for b, y in other.items()}
