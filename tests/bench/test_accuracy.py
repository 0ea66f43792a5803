"""The comparison of accuracies reads what a study and the peer leave, and scores the peer on the test images."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from accuracy import lines, ours, retrain, textbook_winner


def write(path: Path, *values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(value) for value in values))


def test_ours_is_the_confirmed_winner_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Let the study end first"):
        ours(tmp_path)
    recipes = [{"label": "default", "seeds": [0.5, 0.5]}, {"label": "t07", "seeds": [0.7, 0.8]}]
    write(tmp_path / "best" / "comparison.json", {"metric": "accuracy", "winner": "t07", "recipes": recipes})
    write(tmp_path / "best" / "recipe.json", {"max_epochs": 30})
    assert ours(tmp_path) == {"label": "t07", "epochs": 30, "test": [0.7, 0.8]}
    write(tmp_path / "best" / "comparison.json", {"metric": "macro_f1", "winner": "t07", "recipes": recipes})
    with pytest.raises(SystemExit, match="objective=val_accuracy"):
        ours(tmp_path)


def test_the_peers_winner_has_the_best_epoch_of_all_trials(tmp_path: Path) -> None:
    write(tmp_path / "result.json", {})
    for trial, scores in {"a": (0.2, 0.6, 0.3), "b": (0.4, 0.5)}.items():
        folder = tmp_path / "ray" / "train_trial_2026" / f"train_trial_{trial}"
        write(folder / "result.json", *({"val_accuracy": score} for score in scores))
        write(folder / "params.json", {"lr": trial})
    assert textbook_winner(tmp_path, 2, 3, tmp_path) == {"val_accuracy": 0.6, "config": {"lr": "a"}}


def test_the_peer_is_scored_on_the_test_images_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = types.SimpleNamespace(report=None)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(tune=tune))

    def images(split: str, transform: str) -> list[tuple[torch.Tensor, int]]:
        assert (split, transform) == ("test", "as for validation")
        return [(torch.eye(2)[label], label) for label in (0, 1, 1, 1)]

    def train_trial(config: dict[str, int]) -> None:
        Images, plain = images, "as for validation"  # noqa: F841, N806  (read by the name that they have in the peer)
        for epoch in range(config["max_epochs"]):
            model = torch.nn.Linear(2, 2, bias=False)
            model.weight.data = torch.tensor([[1.0, 0.0], [0.0, float(epoch)]])
            tune.report({"val_accuracy": epoch / 10})  # type: ignore[misc]

    monkeypatch.setitem(sys.modules, "textbook_ray", types.SimpleNamespace(train_trial=train_trial))
    curve = retrain({"seed": 0}, 2, tmp_path, 7)
    assert curve == [(0.0, 0.25), (0.1, 1.0)]
    monkeypatch.setitem(sys.modules, "textbook_ray", types.SimpleNamespace(train_trial=None))
    assert retrain({"seed": 0}, 2, tmp_path, 7) == curve  # it lies there already


def test_ours_is_compared_with_the_better_of_the_peers_two() -> None:
    *_, last = lines({"label": "t07", "test": [0.7, 0.8]}, [0.6, 0.6], [0.65, 0.65])
    assert last.endswith(": 0.1000")
