"""Studies that have ended, made without Ray in a few seconds: what trials train, and the journal that tells of it."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvtune import checkpoint, confirm, evaluation, usercode
from cvtune.best import write_best
from cvtune.data import Dataset, open_dataset
from cvtune.durable import write_whole
from cvtune.history import History, load
from cvtune.journal import Journal
from cvtune.recipe import Recipe
from cvtune.results import write_tables
from cvtune.study import Study
from cvtune.train import Run, train

TINY = {"data.image_size": 16, "model.width": 4, "augment.flip": "none", "data.train_fraction": 0.2, "max_epochs": 2}


@dataclass
class Finished:
    """A study's folder with what its trials left; `data` are its images, `runs` its trials as they ended."""

    study: Study
    folder: Path
    data: Dataset
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def history(self) -> History:
        return load(self.folder)

    def test_of(self, trial: str) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(self.folder / "trials" / trial / "test.npz", allow_pickle=False) as content:
            return dict(content)


def finish(study: Study, storage: Path, searched: list[dict[str, Any]], confirmed: bool = True) -> Finished:
    """Train the `searched` trials, confirm the best one where that is asked for, and write tables and `best/`."""
    folder = storage / study.name
    (folder / "journal").mkdir(parents=True)
    data = open_dataset(study.data, study.recipe.largest, storage / "cache", None, 1)
    images = {part: len(getattr(data, part).labels) for part in ("train", "val", "test")}
    told = {"created": 1.0, "data_fingerprint": data.fingerprint, "task": data.task, "classes": data.classes}
    told |= {"images": images, "code": {ref: usercode.source_hash(ref) for ref in study.user_code}}
    write_whole(folder / "study.json", study.to_json({**told, "versions": {"cvtune": "0.1.0"}, "command": ["cvtune"]}))
    made, journal = Finished(study, folder, data), Journal(folder / "journal" / "0001.jsonl")
    journal.append("open", {"term": 1, "host": "here"})
    for index, values in enumerate(searched):
        _train(made, journal, index, "search", "", values, study.trial(index, values))
    if confirmed:
        journal.commit()
        for index, planned in enumerate(confirm.plan(study, made.history), len(searched)):
            recipe = planned.recipe.replace({"seed": index})
            _train(made, journal, index, "confirm", planned.label, {}, recipe)
        journal.commit()
        _test(made, journal)
    journal.append("close", {"why": "complete", "ended": "budget.trials"})
    journal.close()
    write_tables(folder)
    write_best(study, folder, made.history)
    return made


def _train(
    made: Finished, journal: Journal, index: int, role: str, label: str, values: dict[str, Any], recipe: Recipe
) -> None:
    name = f"{index:05d}"
    about = {"trial": name, "index": index, "number": index, "role": role, "label": label, "values": values}
    journal.append("trial", {**about, "recipe": recipe.model_dump(mode="json"), "waiting": False})
    journal.append("segment", {"trial": name, "segment": 0, "attempt": 1, "step": 0, "node": "here", "pid": 1})
    run = made.runs[name] = Run(recipe, made.data, device="cpu")
    for epoch in train(run):
        place = made.folder / "trials" / name / "1" / "checkpoints" / str(epoch.step)
        checkpoint.save(place, run.state_dict(), epoch.numbers())
        for older in list(checkpoint.newest(made.folder / "trials" / name))[1:]:
            shutil.rmtree(older)
        last = epoch.epoch == recipe.max_epochs
        decided = {"answer": "stop" if last else "go", "acts": [], "reason": "completed" if last else None}
        event = {"trial": name, "attempt": 1, "segment": 0, **epoch.numbers(), **decided, "message": ""}
        journal.append("epoch", event)


def _test(made: Finished, journal: Journal) -> None:
    winner = confirm.choose_winner(made.study, made.history)
    assert winner is not None
    journal.append("winner", winner)
    for record in confirm.compared(made.study, made.history):
        metrics, stored = evaluation.score_test(made.runs[record.trial])
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **stored)
        write_whole(made.folder / "trials" / record.trial / "test.npz", content.getvalue())
        journal.append("test", {"trial": record.trial, **metrics})
    journal.commit()
