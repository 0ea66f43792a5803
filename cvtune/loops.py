"""A training loop of the user's own: what it reports, which values of a recipe it honors, what is refused beforehand.

No torch here; how such a loop is run stands in `own_loop.py`, how to write one in `docs/own_loop.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cvtune.epoch import FOLDS, METRICS, Score
from cvtune.errors import ConfigError, did_you_mean
from cvtune.recipe import FIELDS, Recipe
from cvtune.schedulers import PB2, PBT
from cvtune.study import Study
from cvtune.usercode import load_function

Function = TypeVar("Function", bound=Callable[..., Any])

ALWAYS = frozenset(  # cvtune sees to these itself
    {"max_epochs", "patience", "seed", "data.store_size", "data.folds", "train.loop"}
)
BATCHES = frozenset(  # what `own_loop.Run.batches` and `own_loop.Run.evaluation` honor
    {
        *("data.image_size", "data.fit", "data.batch_size", "data.oversample"),
        *("data.train_fraction", "data.report_images"),
        *(f"augment.{leaf}" for leaf in ("strength", "geometry", "color", "quality", "occlusion", "flip", "policy")),
    }
)
_FILLED = frozenset({"step", "epoch", "seconds", *FOLDS})  # by cvtune alone


@dataclass(frozen=True)
class Report:
    """What a loop says after an epoch: see `report_epoch`."""

    metrics: Mapping[str, Score]
    state: Mapping[str, Any] | None


@dataclass(frozen=True)
class Terms:
    """What a loop says of itself: see `loop`."""

    honors: frozenset[str]
    mutable: frozenset[str]
    predict: Callable[..., Any] | None
    code: tuple[str, ...]


def report_epoch(*, train_loss: Any, val_loss: Any, state: Mapping[str, Any] | None = None, **metrics: Any) -> Report:
    """What a loop of the user's own yields after each epoch.

    Args:
        train_loss: mean training loss of the epoch; NaN or infinite ends the trial as diverged, as `val_loss` does.
        val_loss: loss on the validation images.
        state: nested dicts and lists of tensors, numbers and strings (`state_dict()`s are); all that the loop needs to
            go on from here. It is saved before the report counts and comes back as `run.state`. None: a trial whose
            process is lost after its first report cannot be taken up and fails.
        metrics: any others of Epoch, by name (`val_accuracy=...`); what is left out is unknown. Numbers, or tensors
            with one; of single classes (`val_recall=...`) a list of one per class.

    Raises:
        ConfigError: a metric that no Epoch has, one that cvtune fills itself, or a value that is no number.
    """
    valid = METRICS.keys() - _FILLED
    for name in metrics:
        if name not in valid:
            raise ConfigError(f"report_epoch({name}=...): {_no_metric(name)} {did_you_mean(name, valid)}")
    given = {"train_loss": train_loss, "val_loss": val_loss, **metrics}
    if state is not None and not isinstance(state, Mapping):
        raise ConfigError(f"report_epoch(state=...): {type(state).__name__} is no dict. Give the parts names.")
    return Report({name: _number(name, value) for name, value in given.items() if value is not None}, state)


def loop(
    honors: Iterable[str],
    predict: Callable[..., Any] | None = None,
    mutable: Iterable[str] | None = None,
    code: Iterable[str] = (),
) -> Callable[[Function], Function]:
    """Decorate a training loop with what it promises; `train.loop` names the decorated function.

    Args:
        honors: dotted names of the recipe's values that the loop reads. A study that sets or searches another one is
            refused. `BATCHES` are those that `run.batches()` and `run.evaluation()` honor.
        predict: called as (run, part) after `run.state` was restored, gives class scores before the softmax, (N, K),
            of the part's images. None: no recipe of this loop can be confirmed on the test images.
        mutable: those of `honors` that the loop reads anew in each epoch, also after it has restored a state: only they
            can change during training (`changes`, population-based training). None: all of them.
        code: further 'python:module:name' whose source makes the study what it is, hashed like the loop's own file.

    Raises:
        ConfigError: one of `honors` is not a value of a recipe.
    """
    names = frozenset(honors)
    for name in sorted(names - FIELDS.keys()):
        raise ConfigError(f"loop(honors=...): {name!r} is not a value of a recipe. {did_you_mean(name, FIELDS)}")
    changing = names if mutable is None else names & frozenset(mutable)
    terms = Terms(names, changing, predict, tuple(code))

    def decorate(function: Function) -> Function:
        function.terms = terms  # type: ignore[attr-defined]
        return function

    return decorate


def terms_of(ref: str) -> Terms:
    """The terms of the loop behind 'python:module:function'.

    Raises:
        ConfigError: it cannot be imported, or says nothing of itself.
    """
    terms = getattr(load_function(ref, "train.loop"), "terms", None)
    if isinstance(terms, Terms):
        return terms
    raise ConfigError(
        f"train.loop = {ref!r} does not say which values of the recipe it honors. Decorate the function with "
        "@cvtune.loop(honors={'optim.lr', ...})."
    )


def check(study: Study) -> tuple[str, ...]:
    """Refuse what the loops of a study do not honor. Imports them.

    Returns:
        Further user code, as 'python:module:name', whose source is part of the study.

    Raises:
        ConfigError: a value that a loop does not honor is set or searched, `train.loop` itself is searched, or trials
            are to be confirmed with a loop that cannot predict.
    """
    if "train.loop" in study.space.domains:
        raise ConfigError(
            "space: 'train.loop' cannot be searched, because loops honor different values. Give each loop a study of "
            "its own, or a recipe in `candidates`."
        )
    population = isinstance(study.scheduler, PBT | PB2) and study.budget.trials > 0
    code: set[str] = set()
    for where, recipe, searched in _loops(study):
        terms = terms_of(str(recipe.train.loop))
        _check_honored(where, recipe, searched, population, terms)
        if (study.confirm.top or study.candidates) and terms.predict is None:
            raise ConfigError(
                f"{where}train.loop = {recipe.train.loop!r} offers no predict, so its recipes cannot be scored on the "
                "test images. Give it one, @cvtune.loop(..., predict=...), or leave `candidates` out and switch the "
                "confirmation off with --set confirm.top=0."
            )
        code.update(terms.code)
    return tuple(sorted(code))


def _loops(study: Study) -> Iterator[tuple[str, Recipe, set[str]]]:
    """Each recipe with a loop of its own: where it stands, the recipe, and what is searched around it."""
    if study.recipe.train.loop is not None:
        yield "", study.recipe, set(study.space.domains)
    for name, recipe in study.candidates.items():
        if recipe.train.loop is not None:
            yield f"candidates: {name!r}: ", recipe, set()


def _check_honored(where: str, recipe: Recipe, searched: set[str], population: bool, terms: Terms) -> None:
    """`population`: whether the scheduler changes what is searched while a trial trains."""
    changed = {name for _, values in recipe.changes for name in values} | (searched if population else set())
    values = recipe.flat()
    is_set = {name for name, doc in FIELDS.items() if values[name] != doc.default} - searched - changed
    ignored = {
        "searched": sorted(searched - changed - terms.honors - ALWAYS),
        "changed during training": sorted(changed - terms.mutable),
        "set": sorted(is_set - terms.honors - ALWAYS),
    }
    if not any(ignored.values()):
        return
    told = "; ".join(f"{', '.join(names)} ({kind})" for kind, names in ignored.items() if names)
    kept, when = (terms.mutable, " during training") if ignored["changed during training"] else (terms.honors, "")
    raise ConfigError(
        f"{where}train.loop = {recipe.train.loop!r} does not honor {told}: it would make no difference. It honors"
        f"{when} {', '.join(sorted(kept)) or 'nothing'}. Leave the others alone, or let the loop read them from "
        "run.recipe and name them in @cvtune.loop(honors=...)."
    )


def _no_metric(name: str) -> str:
    return "cvtune fills this itself." if name in _FILLED else "no Epoch has this metric."


def _number(name: str, value: Any) -> Score:
    """A number from a number or from a tensor or array with one; of a metric of single classes a list of numbers."""
    kind = METRICS[name].kind
    try:
        if kind is list:
            return [None if one is None else float(one) for one in getattr(value, "tolist", lambda: value)()]
        return kind(value.item() if hasattr(value, "item") else value)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError):
        text = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)[:80]
        wanted = "one number" if kind is not list else "a list of numbers, one for each class"
        raise ConfigError(f"report_epoch({name}=...): {type(value).__name__} ({text}) is not {wanted}.") from None
