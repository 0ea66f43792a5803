"""Every scheduler and every searcher in a real run on the embedded images, on a Ray cluster that is there already."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.invariants import check
from tests.soak.nodes import one_node

BASE = {
    "data.image_size": 16,
    "model.width": 4,
    "augment.flip": "none",
    "data.train_fraction": 0.3,
    "max_epochs": 4,
    "noise_seeds": 0,
    "confirm.top": 0,
}
KINDS: dict[str, dict[str, Any]] = {  # named after their scheduler; each searcher is in one of them
    "fifo": {"scheduler.name": "fifo", "searcher.name": "grid", "searcher.points": 2, "budget.epochs": 12},
    "asha": {"budget.trials": 7},
    "promotion": {"scheduler.name": "promotion", "searcher.name": "tpe", "searcher.startup": 3, "budget.trials": 6},
    "hyperband": {"scheduler.name": "hyperband", "searcher.name": "gp", "searcher.startup": 3, "budget.trials": 7},
    "median": {"scheduler.name": "median", "scheduler.min_trials": 2, "searcher.name": "sobol", "budget.trials": 6},
    "pbt": {"scheduler.name": "pbt", "budget.trials": 4},
    "pb2": {"scheduler.name": "pb2", "budget.trials": 4},
}
# All in one process: what starting a driver costs is tested elsewhere.
SCRIPT = """
import json, sys
from pathlib import Path
from cvtune.engine import run_study
from cvtune.study import for_data

storage, base, kinds = Path(sys.argv[1]), *map(json.loads, sys.argv[2:4])
for name, settings in kinds.items():
    run_study(for_data("digits").set({**base, **settings, "name": name}), storage, storage / "cache")
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A Ray cluster of this machine; yields what the studies' environment has to say of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with one_node(tmp_path_factory.mktemp("ray"), port) as environment:
        yield environment


@pytest.fixture(scope="module")
def storage(ray: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(BASE), json.dumps(KINDS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**os.environ, **ray},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_to_its_end_and_keeps_its_word(storage: Path, kind: str) -> None:
    history = check(storage / kind, 0)
    budget = KINDS[kind].get("budget.trials", 8)
    assert len(history.of("search")) == budget if kind != "fifo" else len(history.of("search")) <= budget
    assert all(record.reason in REASONS_OF.get(kind, ("completed",)) for record in history.trials.values()), [
        r.reason for r in history.trials.values()
    ]
    assert history.epochs <= budget * 4 + (4 if kind.startswith("pb") else 0)


REASONS_OF = {
    **dict.fromkeys(("asha", "promotion", "hyperband", "median"), ("completed", "stopped_scheduler")),
    "fifo": ("completed", "stopped_budget"),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["asha", "promotion", "hyperband", "median", "pbt", "pb2"])
def test_its_decisions_are_in_the_table_with_the_numbers_compared(storage: Path, kind: str) -> None:
    rows = pq.read_table(storage / kind / "tables" / "decisions.parquet").to_pylist()
    action = "exploit" if kind.startswith("pb") else "stop"
    decided = [row for row in rows if row["action"] == action]
    assert decided and all(any(c.isdigit() for c in row["reason"]) for row in decided)
    if action == "exploit":
        assert all(row["donor"] and json.loads(row["values"]) for row in decided)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_a_population_says_what_was_in_force_and_leaves_a_schedule(storage: Path, kind: str) -> None:
    """The rate that the optimizer used and the dropout that the model had follow each exploit, within the domain."""
    epochs = pq.read_table(storage / kind / "tables" / "epochs.parquet").to_pylist()
    assert len({(e["trial"], e["step"]) for e in epochs}) == len(epochs)
    for e in epochs:
        assert e["dropout"] == pytest.approx(e["regularize.dropout"], abs=1e-6)
        assert e["augment_strength"] == pytest.approx(e["augment.strength"])
        assert 0 < e["lr"] <= e["optim.lr"] * (1 + 1e-6)
        assert 0 <= e["augment.strength"] <= 1 and 0 <= e["regularize.strength"] <= 1
    rows = pq.read_table(storage / kind / "tables" / "decisions.parquet").to_pylist()
    for exploit in (r for r in rows if r["action"] == "exploit"):
        after = [e for e in epochs if e["trial"] == exploit["trial"] and e["step"] == exploit["step"] + 1]
        values = json.loads(exploit["values"])
        assert all(e[name] == pytest.approx(value) for e in after for name, value in values.items())
    winner = check(storage / kind, 0).best(for_kind(kind).settled("val_accuracy"))
    assert winner is not None
    if winner[0].exploits:
        schedule = json.loads((storage / kind / "schedule.json").read_text())
        values = [epoch["values"] for epoch in schedule["epochs"]]  # PB2 keeps a donor's while it has learned nothing
        assert bool(schedule["recipe"].get("changes")) == any(each != values[0] for each in values)
        assert (storage / kind / "schedule.html").stat().st_size > 1_000_000


def for_kind(kind: str) -> Any:
    from cvtune.study import for_data

    return for_data("digits").set({**BASE, **KINDS[kind], "name": kind})
