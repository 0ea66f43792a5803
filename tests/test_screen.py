"""What a person sees: live table, lines, summary, the map of the two strengths."""

import io
from typing import Any

import pytest
from rich.console import Console

from cvtune.epoch import METRICS
from cvtune.event import Event
from cvtune.history import History
from cvtune.screen import GRID, Lines, Screen, strength_grid, summary
from cvtune.study import for_data

STUDY = for_data("digits").set({"objective": "val_accuracy", "max_epochs": 9, "budget.trials": 8})


def events(trials: int = 8) -> list[dict[str, Any]]:
    """A study in which trial i scores i / 10; odd ones are stopped at once, trial 2 fails."""
    found: list[dict[str, Any]] = [{"kind": "open", "term": 1, "host": "here"}]
    for i in range(trials):
        name, values = (
            f"{i:05d}",
            {"augment.strength": i / trials, "regularize.strength": (trials - 1 - i) / trials, "optim.lr": 0.1},
        )
        proposed = {"role": "search", "label": "", "values": values, "recipe": {"max_epochs": 9}, "waiting": False}
        found.append({"kind": "trial", "trial": name, "index": i, **proposed})
        found.append({"kind": "segment", "trial": name, "attempt": 1, "segment": 0, "node": "here"})
        scores = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": i / 10, "step": 1, "epoch": 1}
        decided = {"answer": "go", "acts": [], "reason": None, "message": ""}
        found.append({"kind": "epoch", "trial": name, "attempt": 1, "segment": 0, **scores, **decided})
        if i % 2:
            found.append({"kind": "end", "trial": name, "reason": "stopped_scheduler", "message": "rung 1", "acts": []})
    found.append({"kind": "end", "trial": "00002", "reason": "code_error", "message": "ValueError: no", "acts": []})
    found.append({"kind": "close", "why": "complete", "ended": "budget.trials = 8"})
    return [{"t": 1.7e9 + n, **event} for n, event in enumerate(found)]


def played(listener: Any = lambda event, history: None) -> History:
    history = History()
    for event in events():
        history.apply(Event(event))
        listener(event, history)
    return history


def shown(what: Any, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def test_lines_name_the_trial_the_score_and_the_best_so_far() -> None:
    line, lines = Lines(STUDY), []
    played(lambda event, history: lines.append(line(event, history)))
    said = [text for text in lines if text]
    assert any("trial 00003 epoch 1/9 val_accuracy 0.3  best 0.3000 (00003)" in text for text in said)
    assert any("trial 00002 code_error: ValueError: no" in text for text in said)
    assert "closed: complete" in said[-1]


def test_a_study_that_is_taken_up_again_remembers_its_best() -> None:
    line, history = Lines(STUDY), played(lambda event, history: None)
    line({"kind": "open", "t": 0.0, "term": 2, "host": "here"}, history)
    assert "best 0.7000 (00007)" in line(next(e for e in events() if e["kind"] == "epoch"), history)


def test_a_terminal_gets_a_live_table_and_a_file_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with Screen(STUDY, Console(file=out, force_terminal=True, width=120, height=30)) as screen:
        played(screen)
    assert "digits: val_accuracy" in out.getvalue() and "stopped_scheduler" in out.getvalue()
    assert capsys.readouterr().out == ""
    with Screen(STUDY, Console(file=io.StringIO())) as screen:
        played(screen)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8 + 5 + 1


def test_the_summary_tells_the_best_what_was_saved_and_what_failed(tmp_path: Any) -> None:
    text = shown(summary(STUDY, played(), tmp_path, 12.0))
    assert "val_accuracy = 0.7000" in text and "trial 00007, epoch 1" in text
    assert "8 trials, 8 epochs in 12 s" in text
    assert "ASHA saved 32 of 72 epochs (44%)" in text  # four trials stopped after one of nine epochs
    assert "1 trials code_error" in text and "ValueError: no" in text
    assert "tables" in text and "tables" in text.split("tables", 1)[1]


def test_the_map_puts_each_trial_into_its_cell() -> None:
    grid = strength_grid(STUDY, played())
    assert grid is not None and grid.row_count == GRID and len(grid.columns) == GRID + 1
    text = shown(grid)
    assert "0.700 (2)" in text and text.count("(2)") + text.count("(1)") >= 4


def test_there_is_no_map_of_too_few_trials_or_other_axes() -> None:
    assert strength_grid(STUDY, History()) is None
    history = History()
    for event in events(4)[:-2]:
        history.apply(Event(event))
    assert strength_grid(STUDY, history) is None
