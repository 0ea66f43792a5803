"""Everything that can be found wrong before the first trial: the images, and both ends of every searched domain.

Runs as a process of its own (`python -m cvtune.preflight`, study on standard input, answer on standard output), so
that the driver loads neither torch nor images, and so that Ray can start in the meantime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cvtune import errors, loops
from cvtune.data_checks import FEW_IMAGES, few_images
from cvtune.errors import ConfigError, CvtuneError, told
from cvtune.fetch import model_pairs, require_weights
from cvtune.objective import AUTO, choose
from cvtune.recipe import Recipe
from cvtune.schedulers import PB2, PBT, HyperBand, Promotion
from cvtune.sections import TORCHVISION
from cvtune.study import Study, make

# What decides the shapes of a network and of its input: two values that fit alone may not fit together.
SHAPES = ("model.name", "model.norm", "model.width", "data.image_size")


@dataclass(frozen=True)
class Prepared:
    """What the driver needs to know of the images."""

    classes: tuple[str, ...]
    images: dict[str, int]  # train, val, test -> number of images
    fingerprint: str
    corrupt: tuple[str, ...]
    notices: tuple[str, ...]
    objective: str  # the study's own, or what its `auto` came to
    task: str = "classify"  # one of `listing.Task`
    left_open: bool = False  # whether the study said `auto`
    store: str | None = (
        None  # the decoded store of this machine; None: it did not fit, images are decoded at each access
    )
    mappings: dict[str, int] = field(default_factory=dict)  # versions of the two strength mappings
    code: dict[str, str] = field(default_factory=dict)  # python:module:function -> SHA-256 of its source
    weights: dict[str, str] = field(default_factory=dict)  # see `models.weights.digests`


def start(study: Study, cache: Path | None, roots: tuple[str, ...]) -> subprocess.Popen[str]:
    """Begin the check of a study in a process of its own; `finish` gives the answer.

    Raises:
        DataError: a published data set is not there; to say so takes neither torch nor Ray.
        ConfigError: there is no published data set of that name.
    """
    if study.data.source.startswith(TORCHVISION):
        from cvtune.data.torchvision import require

        require(study.data.source)
    process = subprocess.Popen(
        [sys.executable, "-m", "cvtune.preflight"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the driver, which then ends this process itself
    )
    assert process.stdin is not None
    job = {"study": study.model_dump(mode="json"), "cache": cache and str(cache), "roots": roots}
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[str]) -> Prepared:
    """Wait for the answer.

    Raises:
        CvtuneError: what the check found, as the class that it was raised as.
    """
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait()
    try:
        answer = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError):
        raise CvtuneError(
            f"the check before the first trial died with exit code {process.returncode}; its output is above."
        ) from None
    if "error" in answer:
        raise getattr(errors, answer["error"], CvtuneError)(answer["message"])
    lists = {key: tuple(answer[key]) for key in ("classes", "corrupt", "notices")}
    return Prepared(**{**answer, **lists})


def prepare(study: Study, cache: Path | None) -> Prepared:
    """Open the images (building this machine's decoded store of each size) and build what the study may ask for.

    Raises:
        DataError: the images cannot be used.
        ConfigError: an end of a domain or a choice cannot be built, or its published weights are not there.
    """
    from cvtune.usercode import source_hash

    require_weights(study)  # decoding images may take long
    code = {ref: source_hash(ref) for ref in (*study.user_code, *loops.check(study))}
    weights = {}
    if pretrained := model_pairs(study):
        from cvtune.models.weights import digests  # late: torch

        weights = digests(pretrained)
    from cvtune.data.folds import Folds

    stores = _Stores(study, cache)
    data = stores.of(study.recipe)
    if study.recipe.data.folds:
        Folds(data, study.recipe.data.folds, study.data.split_seed)  # says whether there are enough images
    if (study.confirm.top or study.candidates) and not len(data.test.labels):
        raise ConfigError(
            "confirm: the confirmed recipes are compared on test images, but there are none. Give some with "
            "data.test_share above 0, or switch the confirmation off with --set confirm.top=0."
        )
    from cvtune.tasks import check_objective

    objective, why = _objective(study, data)
    settled = study.settled(objective)
    check_objective(settled.objective, data.task, settled.limits)
    _rehearse(settled, stores)
    from cvtune import augment, regularize

    return Prepared(
        classes=data.classes,
        images={part: len(getattr(data, part).labels) for part in ("train", "val", "test")},
        fingerprint=data.fingerprint,
        corrupt=data.corrupt,
        notices=(*why, *stores.notices(), *_few(data), *_left_out(study, data)),
        objective=objective,
        task=data.task,
        left_open=study.objective == AUTO,
        store=str(data.store) if data.store else None,
        mappings={"augment_mapping": augment.MAPPING_VERSION, "regularize_mapping": regularize.MAPPING_VERSION},
        code=code,
        weights=weights,
    )


class _Stores:
    """The images of a study, decoded once for each size (and fit) that a trial may ask for."""

    def __init__(self, study: Study, cache: Path | None) -> None:
        self._study, self._cache = study, cache
        self._opened: dict[tuple[Any, ...], Any] = {}

    def of(self, recipe: Recipe) -> Any:
        """The data set that a trial of `recipe` opens."""
        from cvtune.data import cache_folder, open_dataset

        data = recipe.largest
        key = (data.image_size, data.store_size, data.fit)
        if key not in self._opened:
            limit, threads = self._study.resources.cache_bytes, os.cpu_count() or 1
            self._opened[key] = open_dataset(self._study.data, data, cache_folder(self._cache), limit, threads)
        return self._opened[key]

    def notices(self) -> tuple[str, ...]:
        """What there is to say of any of them, each once."""
        return tuple(dict.fromkeys(notice for data in self._opened.values() for notice in data.notices))


def _rehearse(study: Study, stores: _Stores) -> None:
    """Try each recipe of `corners` on a few images of the data set that it would open.

    Raises:
        ConfigError: one of them fails, with what is particular to it in words.
    """
    import torch  # late: a folder without images should not wait for it

    torch.set_num_threads(1)  # Ray starts beside this
    for name, recipe in corners(study):
        try:
            _try(recipe, stores.of(recipe), study)
        except CvtuneError as error:
            raise ConfigError(f"{name}: {error}" if name else str(error)) from None
        except Exception as error:  # whatever user code or an unlucky combination may raise
            what = f"{name}: " if name else ""
            raise ConfigError(
                f"{what}training on four images and scoring them failed with {told(error)}. Correct it; "
                "nothing was trained."
            ) from None


def _few(data: Any) -> tuple[str, ...]:
    """A notice where there are so few images that a search can hardly tell recipes apart."""
    train, val = len(data.train.labels), len(data.val.labels)
    return (f"{few_images(train, val)}. See `cvtune check`.",) if train < FEW_IMAGES else ()


def _left_out(study: Study, data: Any) -> tuple[str, ...]:
    """What the augmentations that a study may use have to leave out, each notice once."""
    from cvtune.augment import left_out

    policies = [recipe.augment for _, recipe in corners(study)]
    if study.confirm.top and study.recipe.train.loop is None:  # the baseline that is confirmed beside the best
        policies.append(study.recipe.augment.model_copy(update={"policy": "trivial"}))
    notices = dict.fromkeys(left_out(policy, data.kind) for policy in policies)
    return tuple(notice for notice in notices if notice)


def _objective(study: Study, data: Any) -> tuple[str, tuple[str, ...]]:
    """The objective to compare by, and a notice of why where the study leaves it open."""
    if study.objective != AUTO:
        return study.objective, ()
    labels = data.train.labels.tolist()
    images = {name: labels.count(label) for label, name in enumerate(data.classes)}
    chosen, why = choose(data.task, images)
    return chosen, (f"objective = {chosen}: {why}. Another one: --set objective=NAME.",)


def corners(study: Study) -> Iterator[tuple[str, Recipe]]:
    """The base recipe, the candidates, and every end of every domain and every choice, one at a time.

    Those of SHAPES come in pairs as well. Conditions are fulfilled.
    """
    yield "", study.recipe
    for name, recipe in study.candidates.items():
        yield f"candidates: {name!r}", recipe
    for words, point in chain(study.space.ends(), study.space.pairs(SHAPES)):
        yield f"space: {words}", study.recipe.replace(point)


def _try(recipe: Recipe, data: Any, study: Study) -> None:
    """Train one step on four images, score them, and draw their strip, with all classes: a wrong head shows here."""
    import dataclasses

    import numpy as np

    from cvtune.evaluation import evaluate, score_test, strip_of
    from cvtune.models import check_model
    from cvtune.regularize import resolve
    from cvtune.train import Run, one_pass

    few = np.unique(np.linspace(0, len(data.train.labels) - 1, 4).astype(int))
    known = {field.name: getattr(data.train, field.name) for field in dataclasses.fields(data.train)}
    part = dataclasses.replace(
        data.train,
        **{
            name: of[few] if isinstance(of, np.ndarray) else [of[int(i)] for i in few]
            for name, of in known.items()
            if of is not None
        },
    )
    tiny = dataclasses.replace(data, train=part, val=part, test=part)
    fast = recipe.replace(
        {
            "max_epochs": 1,
            "data.folds": None,
            "changes": (),
            "data.train_fraction": 1.0,
            "optim.warmup_epochs": 0,
            "data.batch_size": 4,
            "data.image_size": recipe.largest.image_size,
        }
    )
    if recipe.train.loop is not None:
        from cvtune.own_loop import rehearse

        pauses = isinstance(study.scheduler, PBT | PB2 | HyperBand | Promotion) and study.budget.trials > 0
        rehearse(fast.replace({"max_epochs": 2}), tiny, {study.objective, *study.limits}, pauses)
        return
    run = Run(fast, tiny, device="cpu")  # the driver's machine may have no GPU, or one that is not ours
    for size in sorted(set(recipe.image_sizes)):
        try:
            check_model(run.model, len(data.classes), size)
        except ConfigError as error:
            if size == recipe.largest.image_size:
                raise
            raise ConfigError(
                f"changes: model.name = {recipe.model.name!r} is built for its largest data.image_size = "
                f"{recipe.largest.image_size} and cannot take {size} px ({error}). Choose a model of any size, such as "
                "small_resnet or torchvision:resnet18, or one size."
            ) from None
    one_pass(run, resolve(fast), seed=0, stop=lambda: False)
    evaluate(run)
    score_test(run)
    if study.tracking.strip:
        strip_of(run, study.tracking.strip)


def main() -> None:
    job = json.load(sys.stdin)
    sys.path[:0] = [root for root in job["roots"] if root not in sys.path]
    try:
        answer = asdict(prepare(make(job["study"]), job["cache"] and Path(job["cache"])))
    except CvtuneError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        sys.exit(error.exit_code)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
