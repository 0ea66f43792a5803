"""A LightningModule, as it is, as a training loop: `train.loop` names what `lightning_loop` makes of it.

Lightning's own Trainer trains: each epoch is one `fit` that takes up the trainer's checkpoint of the epoch before, held
in memory. So there is one way to go on, the same after a report as after a lost process, and whatever Lightning keeps
(optimizers, rate schedules, loops, callbacks' state) is what cvtune saves.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cvtune.data import Part
from cvtune.errors import ConfigError, did_you_mean
from cvtune.evaluation import EVALUATION_BATCH, Stopped
from cvtune.fields import USER_CODE
from cvtune.loops import BATCHES, Report, loop, report_epoch
from cvtune.own_loop import Batches, Run
from cvtune.recipe import FIELDS
from cvtune.train import seed_everything

IN_MEMORY = "in memory"  # where Lightning believes the checkpoint to be
NOT_KEPT = ("hyper_parameters", "hparams_name", "hparams_type")  # they are the recipe's
OURS = frozenset(  # arguments of the Trainer that follow from the recipe and the worker
    {
        *("accelerator", "devices", "max_epochs", "logger", "callbacks", "plugins", "enable_checkpointing"),
        *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "use_distributed_sampler"),
    }
)


@dataclass(frozen=True)
class Adapted:
    """A LightningModule and how it meets a recipe; calling it trains. See `lightning_loop`."""

    module: type[Any]
    arguments: Mapping[str, str]
    metrics: Mapping[str, str]
    classes: str | None
    trainer: Mapping[str, Any]

    def __call__(self, run: Run) -> Iterator[Report]:
        pl = _flavor(self.module)
        logging.getLogger(pl.__name__).setLevel(logging.WARNING)  # a Trainer introduces itself at length
        module, state = self.build(run), run.state
        while True:
            watch, held = _watch(pl, run), _held(pl, state)
            trainer = self._trainer(pl, run, [watch], held)
            train, val = _Feed(run, None), _Feed(run, run.data.val)
            seed_everything(run.base.seed, run.step)  # once more: building a module has drawn numbers
            try:
                trainer.fit(module, train, val, ckpt_path=None if state is None else IN_MEMORY)
            except Stopped:
                return
            if run.stopped:  # between the batches of the feed, which then ended: Lightning saw a short epoch
                return
            trainer.save_checkpoint(IN_MEMORY)
            state = {key: value for key, value in held.checkpoint.items() if key not in NOT_KEPT}
            yield report_epoch(
                **self._metrics(trainer, watch),
                lr=sum(watch.rates) / len(watch.rates) if watch.rates else None,
                parameters=sum(p.numel() for p in module.parameters()),
                state=state,
            )

    def build(self, run: Run) -> Any:
        """The module with the recipe's values as its arguments."""
        now = run.recipe.flat()
        given: dict[str, Any] = {argument: now[name] for argument, name in self.arguments.items()}
        if self.classes is not None:
            given[self.classes] = len(run.data.classes)
        return self.module(**given)

    def predict(self, run: Run, part: Part) -> torch.Tensor:
        """Scores (N, K): what the restored module's `forward` makes of the images."""
        assert run.state is not None
        module = self.build(run)
        module.load_state_dict(run.state["state_dict"])
        module.to(run.device).eval()
        return torch.cat([module(images.to(run.device)).float().cpu() for images, _ in _Feed(run, part)])

    def _trainer(self, pl: Any, run: Run, callbacks: list[Any], held: Any) -> Any:
        here = importlib.import_module(f"{pl.__name__}.plugins.environments").LightningEnvironment()
        return pl.Trainer(
            **self.trainer,
            max_epochs=run.base.max_epochs,  # rate schedules may ask for it, though each fit ends after one epoch
            accelerator="gpu" if run.device == "cuda" else "cpu",
            devices=1,
            callbacks=callbacks,
            plugins=[held, here],  # in a Slurm job it would take each trial for a task of its own, and queue it again
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )

    def _metrics(self, trainer: Any, watch: Any) -> dict[str, Any]:
        """Epoch's names for what the module logged; the mean of what `training_step` returned, unless it logs that."""
        logged = trainer.callback_metrics
        found: dict[str, Any] = {"train_loss": watch.loss / watch.images} if watch.images else {}
        for name, metric in self.metrics.items():
            if name not in logged:
                raise ConfigError(f"{self.module.__name__} logged no {name!r}. {did_you_mean(name, logged)}")
            found[metric] = logged[name]
        if "train_loss" not in found:
            raise ConfigError(
                f"{self.module.__name__}.training_step returned no loss. Log one with on_epoch=True and name it in "
                "lightning_loop(metrics={..., 'NAME': 'train_loss'})."
            )
        return found


def lightning_loop(
    module: type[Any],
    arguments: Mapping[str, str],
    metrics: Mapping[str, str],
    classes: str | None = "num_classes",
    trainer: Mapping[str, Any] | None = None,
) -> Callable[[Run], Iterator[Report]]:
    """A training loop for `train.loop` from a LightningModule that knows nothing of cvtune.

    Batches are those of `Run.batches` (augmented as the recipe says), normalized as cvtune's own loop does (see
    `normalize.normalizer_of`): float32 (N, C, S, S) and targets (labels int64 (N,), or tags or masks). `training_step`
    and `validation_step` get them as pairs; `forward` has to give class scores (N, K), of masks (N, K, S, S). The
    arguments are fixed for a trial, so only what `Run.batches` honors can change during training.

    Args:
        module: the class; it may come from `lightning.pytorch` or from `pytorch_lightning`.
        arguments: argument of its `__init__` -> dotted name of the recipe's value that it gets.
        metrics: name that `validation_step` (or `training_step`) logs -> name in Epoch. One has to give `val_loss`.
        classes: argument that gets the number of classes; None: none does.
        trainer: further arguments of Lightning's Trainer, such as {"gradient_clip_val": 1.0}.

    Raises:
        ConfigError: `module` is no LightningModule, has no such argument, or a name on the right is not known.
    """
    _flavor(module)
    known = inspect.signature(module.__init__).parameters
    for argument in [*arguments, *([classes] if classes is not None else [])]:
        if argument not in known:
            valid = did_you_mean(argument, set(known) - {"self"})
            raise ConfigError(f"lightning_loop: {module.__name__} has no argument {argument!r}. {valid}")
    for name in arguments.values():
        if name not in FIELDS:
            raise ConfigError(f"lightning_loop: {name!r} is not a value of a recipe. {did_you_mean(name, FIELDS)}")
    others = set(metrics.values()) - {"train_loss", "val_loss"}
    report_epoch(train_loss=0.0, val_loss=0.0, state=None, **dict.fromkeys(others, 0.0))  # refuses unknown names
    if "val_loss" not in metrics.values():
        raise ConfigError("lightning_loop(metrics=...): name what the module logs as 'val_loss'.")
    for name in sorted(OURS & set(trainer or {})):
        raise ConfigError(f"lightning_loop(trainer=...): {name!r} follows from the study. Leave it out.")
    adapted = Adapted(module, dict(arguments), dict(metrics), classes, dict(trainer or {}))
    source = f"python:{module.__module__}:{module.__qualname__}"
    terms = loop(
        honors={*arguments.values(), *BATCHES},
        predict=adapted.predict,
        mutable=BATCHES,
        code=[source] if USER_CODE.fullmatch(source) else [],
    )

    def train(run: Run) -> Iterator[Report]:
        return adapted(run)

    return terms(train)


@dataclass(frozen=True)
class _Feed:
    """What Lightning takes for a data loader: normalized batches of a part, or (None) of the epoch's training images.

    It has a length, which rate schedules ask for.
    """

    run: Run
    part: Part | None

    def __iter__(self) -> Batches:
        batches = self.run.batches() if self.part is None else self.run.evaluation(self.part)
        for images, labels in batches:
            yield self.run.normalized(images), labels

    def __len__(self) -> int:
        if self.part is not None:
            return -(-len(self.part.labels) // EVALUATION_BATCH)
        images, size = self.run.images, self.run.base.data.batch_size
        return -(-images // size) - (images % size == 1 and images > 1)  # a last single image makes no batch


def _flavor(module: type[Any]) -> Any:
    """The package whose LightningModule this is: `lightning.pytorch`, or the older name `pytorch_lightning`."""
    roots = {base.__module__.partition(".")[0] for base in getattr(module, "__mro__", ())}
    for root, package in (("lightning", "lightning.pytorch"), ("pytorch_lightning", "pytorch_lightning")):
        if root in roots and issubclass(module, (pl := importlib.import_module(package)).LightningModule):
            return pl
    raise ConfigError(f"lightning_loop: {module!r} is no LightningModule. Give the class itself, not an object of it.")


def _watch(pl: Any, run: Run) -> Any:
    """A callback that stops between two batches, ends `fit` after one epoch and adds up the training loss."""

    class Watch(pl.Callback):  # type: ignore[misc]
        loss, images = 0.0, 0

        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            _stop(run)
            self.rates += [optimizer.param_groups[-1]["lr"] for optimizer in trainer.optimizers[:1]]

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if loss is not None:
                self.loss, self.images = self.loss + loss.detach() * len(batch[1]), self.images + len(batch[1])

        def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, loader: int = 0) -> None:
            _stop(run)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.should_stop = True

    return Watch()


def _held(pl: Any, checkpoint: Mapping[str, Any] | None) -> Any:
    """Where the Trainer's checkpoint is kept: in memory, from where it goes into cvtune's own."""

    class Held(importlib.import_module(f"{pl.__name__}.plugins.io").CheckpointIO):  # type: ignore[misc]
        def __init__(self) -> None:
            self.checkpoint: Mapping[str, Any] | None = checkpoint

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            self.checkpoint = checkpoint

        def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
            return dict(self.checkpoint or {})

        def remove_checkpoint(self, path: Any) -> None:
            self.checkpoint = None

    return Held()


def _stop(run: Run) -> None:
    if run.stop():
        raise Stopped
