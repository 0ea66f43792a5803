"""What W&B is told, as plain values: from a journal that is written here, without W&B's client."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvtune import history
from cvtune.durable import write_whole
from cvtune.epoch import METRICS
from cvtune.errors import ConfigError
from cvtune.journal import Journal, Tail, read
from cvtune.recipe import Recipe
from cvtune.report import figures
from cvtune.schedulers import PBT, HyperBand
from cvtune.sections import Budget, Tracking
from cvtune.space import LogUniform, Uniform, space
from cvtune.study import Study
from cvtune.track import launch, runs, study_run
from cvtune.track.study_run import Material
from tests.report.made import findings

AXES = {"augment.strength": Uniform(0, 1), "regularize.strength": Uniform(0, 1), "optim.lr": LogUniform(1e-4, 1)}
STUDY = Study(
    name="one",
    objective="val_accuracy",
    recipe=Recipe().replace({"max_epochs": 9}),
    space=space(AXES),
)
VALUES = {"augment.strength": 0.641, "regularize.strength": 0.27, "optim.lr": 1e-3}
CREATED = {
    "created": 1.5,
    "data_fingerprint": "0123456789abcdef",
    "git_commit": "fedcba9876543210",
    "classes": ["a", "b"],
}


class Writer:
    """Writes a study's journal, one term per `Journal`."""

    def __init__(self, folder: Path, study: Study = STUDY) -> None:
        self.folder, self.study, self._n = folder, study, 0
        (folder / "journal").mkdir(parents=True)
        (folder / "study.json").write_text(study.to_json(CREATED))
        self.term(1)

    def term(self, number: int) -> None:
        self.journal = Journal(self.folder / "journal" / f"{number:04d}.jsonl")

    def trial(
        self, role: str, scores: Sequence[float | None], reason: str | None, label: str = "", message: str = ""
    ) -> str:
        name = f"{self._n:05d}"
        about = {"trial": name, "index": self._n, "number": self._n, "role": role, "label": label, "values": VALUES}
        recipe = self.study.trial(self._n, VALUES).model_dump(mode="json", exclude_defaults=True)
        self.journal.append("trial", {**about, "recipe": recipe, "waiting": False})
        self._n += 1
        for step, score in enumerate(scores, 1):
            self.epoch(name, step, score, reason if step == len(scores) else None, message)
        if not scores and reason:
            self.journal.append("end", {"trial": name, "reason": reason, "message": message, "acts": []})
        return name

    def epoch(
        self, name: str, step: int, score: float | None, reason: str | None = None, message: str = "", **more: Any
    ) -> None:
        event = {"trial": name, "attempt": 1, "segment": 0, **dict.fromkeys(METRICS, 0.5), "step": step, "epoch": step}
        event |= {"val_accuracy": score, "answer": "go", "acts": [], "reason": reason, "message": message}
        self.journal.append("epoch", event | more)

    def history(self) -> history.History:
        return history.load(self.folder)


def test_a_trial_keeps_its_id_over_retries_and_resumes_and_shares_it_with_no_other(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.1], None)
    write.trial("search", [0.1], None)
    before = [runs.of_trial(STUDY, CREATED, record) for record in write.history().trials.values()]
    write.epoch("00000", 2, 0.4, attempt=2)
    after = [runs.of_trial(STUDY, CREATED, record) for record in write.history().trials.values()]
    assert before == after
    again = [runs.of_trial(STUDY, CREATED | {"created": 2.5}, record) for record in write.history().trials.values()]
    assert len({run.id for run in [*before, *again]}) == 4
    assert all(len(run.id) == 16 for run in before)


def test_a_run_is_readable_and_its_config_gives_our_dotted_names(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [], None)
    write.trial("confirm", [], None, label="00000")
    write.trial("noise", [], None)
    search, confirm, noise = (runs.of_trial(STUDY, CREATED, r) for r in write.history().trials.values())
    assert (search.name, search.job_type) == ("00000 aug 0.64 reg 0.27 lr 0.001", "trial")
    assert (confirm.name, confirm.job_type) == ("00001 confirm 00000", "confirm")
    assert (noise.name, noise.job_type) == ("00002 noise", "trial")
    assert search.group == "one"
    assert search.tags == ("asha", "data:0123456789ab", "git:fedcba9876", "search")
    assert search.config["augment"]["strength"] == 0.641
    assert search.config["optim"]["lr"] == 1e-3
    json.dumps(search.config)


def test_rows_hold_every_metric_and_leave_out_what_is_no_number(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.1, None, 0.3], "completed")
    (record,) = write.history().trials.values()
    first, second, third = runs.rows(STUDY, record, tmp_path / "one")
    assert [row.step for row in (first, second, third)] == [1, 2, 3]
    assert first.values.keys() == METRICS.keys() - {"step"} | {"attempt", "segment"}
    assert "val_accuracy" not in second.values
    assert list(runs.rows(STUDY, record, tmp_path / "one", after=2)) == [third]


def test_a_report_has_its_strip_the_later_attempts_where_there_are_two_and_private_ones_stay(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    name = write.trial("search", [0.1, 0.2, 0.3], "completed")
    (record,) = write.history().trials.values()
    for attempt, step in ((1, 1), (2, 1), (2, 3)):
        place = tmp_path / "one" / "trials" / name / str(attempt) / "media"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{step}.png").touch()
    shown = [row.strip for row in runs.rows(STUDY, record, tmp_path / "one")]
    assert [path and path.relative_to(tmp_path).parts[3:] for path in shown] == [
        ("2", "media", "1.png"),
        None,
        ("2", "media", "3.png"),
    ]
    private = STUDY.set({"tracking.private": True})
    assert [row.strip for row in runs.rows(private, record, tmp_path / "one")] == [None] * 3


def test_the_values_that_a_population_changes_are_metrics(tmp_path: Path) -> None:
    population = STUDY.model_copy(update={"scheduler": PBT(), "budget": Budget(trials=2)})
    write = Writer(tmp_path / "one", population)
    donor = write.trial("search", [0.5, 0.6], None)
    name = write.trial("search", [0.1], None)
    exploit = {"act": "exploit", "trial": name, "donor": donor, "donor_step": 1, "why": ""}
    write.epoch(name, 2, 0.2, acts=[{**exploit, "values": {"augment.strength": 0.9}}])
    write.epoch(name, 3, 0.6, segment=1)
    record = write.history().trials[name]
    strengths = [row.values["effective/augment.strength"] for row in runs.rows(population, record, tmp_path / "one")]
    assert strengths == [0.641, 0.641, 0.9]
    assert "effective/optim.lr" in next(runs.rows(population, record, tmp_path / "one")).values


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        *(("completed", "finished"), ("stopped_scheduler", "finished"), ("stopped_budget", "finished")),
        *(("code_error", "failed"), ("oom_gpu", "failed"), ("diverged", "failed"), (None, "preempted")),
    ],
)
def test_a_stopped_trial_has_finished_a_failed_one_failed_and_an_open_one_is_preempted(
    tmp_path: Path, reason: str | None, state: str
) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.2, 0.4], reason, message="why")
    (record,) = write.history().trials.values()
    assert runs.state(record) == state
    told = runs.summary(STUDY, record)
    assert told.get("reason") == reason
    assert (told["best"], told["best_step"], told["last"], told["epochs"]) == (0.4, 2, 0.4, 2)
    assert told["total_seconds"] == 1.0
    assert told["val_accuracy"] == {"max": 0.4}


def test_trials_that_will_be_tested_are_not_settled_before(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    for role in ("search", "noise", "confirm"):
        write.trial(role, [0.2], "completed")
    write.trial("noise", [0.2], "code_error")
    found = write.history().trials
    assert [runs.is_settled(STUDY, record) for record in found.values()] == [True, False, False, True]
    write.journal.append("test", {"trial": "00001", "test_accuracy": 0.75, "test_ece": float("nan")})
    record = write.history().trials["00001"]
    assert runs.is_settled(STUDY, record)
    told = runs.summary(STUDY, record)
    assert told["test_accuracy"] == 0.75 and "test_ece" not in told


@pytest.mark.parametrize(("trials", "large"), [(500, False), (501, True)])
def test_in_a_large_study_trials_that_the_first_rung_stopped_have_no_run(
    tmp_path: Path, trials: int, large: bool
) -> None:
    study = STUDY.model_copy(update={"budget": Budget(trials=trials)})
    write = Writer(tmp_path / "one", study)
    write.trial("search", [0.2], "stopped_scheduler")
    write.trial("search", [0.2, 0.4], "stopped_scheduler")
    write.trial("noise", [0.2], None)
    found = write.history()
    assert runs.is_large(study, found) is large
    assert [runs.has_run(study, r, large) for r in found.trials.values()] == [not large, True, True]
    table = study_run.trials(Material(study, write.folder, CREATED, found))
    assert table is not None and len(table.rows) == 3
    few = study.model_copy(update={"budget": Budget(trials=trials, epochs=100)})
    assert not runs.is_large(few, found)
    assert runs.first_rung(study.model_copy(update={"scheduler": HyperBand()})) == 1


def test_the_worst_errors_are_those_whose_right_class_was_least_probable(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("confirm", [0.5], "completed", label="00000")
    write.trial("confirm", [0.9], "completed", label="00000")
    for name in ("00000", "00001"):
        write.journal.append("test", {"trial": name, "test_accuracy": 0.5})
        (write.folder / "trials" / name).mkdir(parents=True)
    write.journal.append("winner", {"label": "00000", "scores": {}, "failed": {}, "tied": []})
    probabilities = np.array([[0.75, 0.25], [0.875, 0.125], [0.5, 0.5], [1.0, 0.0]], np.float32)
    np.savez(write.folder / "trials" / "00001" / "test.npz", probabilities=probabilities, labels=[1, 1, 0, 1])
    np.savez(write.folder / "trials" / "00000" / "test.npz", probabilities=probabilities[:, ::-1], labels=[1, 1, 0, 1])
    of = Material(STUDY, write.folder, CREATED, write.history())
    table = study_run.worst_errors(of)
    assert table is not None
    assert [row[:4] for row in table.rows] == [(3, "b", "a", 1.0), (1, "b", "a", 0.875), (0, "b", "a", 0.75)]
    assert table.rows[1][4] == pytest.approx(np.log(8))
    assert all(np.isfinite(row[4]) for row in table.rows)


def test_nothing_about_single_images_leaves_a_private_study(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("confirm", [0.9], "completed", label="default")
    write.journal.append("test", {"trial": "00000", "test_accuracy": 0.5})
    write.journal.append("winner", {"label": "default", "scores": {}, "failed": {}, "tied": []})
    (write.folder / "trials" / "00000").mkdir(parents=True)
    np.savez(write.folder / "trials" / "00000" / "test.npz", probabilities=np.eye(2, dtype=np.float32), labels=[1, 1])
    (write.folder / "best").mkdir()
    for name in ("model.safetensors", "model.onnx", "metrics.json", "README.md"):
        (write.folder / "best" / name).write_bytes(b"x")
    (write.folder / "tables").mkdir()
    for name in ("trials", "predictions"):
        (write.folder / "tables" / f"{name}.parquet").write_bytes(b"PAR1")
    open_to_all = Material(STUDY, write.folder, CREATED, write.history())
    private = Material(
        STUDY.model_copy(update={"tracking": Tracking(private=True)}), write.folder, CREATED, write.history()
    )
    leaving = {name: set(study_run.tables(of)) | _files(of) for name, of in (("open", open_to_all), ("p", private))}
    weights = {"model.safetensors", "model.onnx"}  # single images may be recovered from them
    assert leaving["open"] - leaving["p"] == {"worst_errors", "tables/predictions.parquet"} | weights
    assert {"tables/trials.parquet", "metrics.json", "README.md"} <= leaving["p"]


def test_classes_go_by_their_names_without_what_divides_a_key() -> None:
    names = runs.shown(["cat", "a.b", "a/b", "\u00e9t\u00e9", "<img>", "big dog"])
    assert names == ("cat", "a_b 1", "a_b 2", "\u00e9t\u00e9", "_img_", "big dog")
    assert list(runs.single("val_iou", [0.5, None, 0.25], names)) == [("val_iou/cat", 0.5), ("val_iou/a_b 2", 0.25)]
    assert list(runs.single("val_iou", [0.5, 0.25], names[:1])) == [("val_iou/cat", 0.5), ("val_iou/1", 0.25)]


def test_rows_and_summaries_name_classes(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    trial = write.trial("confirm", [0.9], "completed", label="default")
    write.journal.append("test", {"trial": trial, "test_accuracy": 0.5, "test_recall": [1.0, 0.25]})
    record = write.history().trials[trial]
    record.epochs[0] = {**record.epochs[0], "val_recall": [0.5, 0.75]}
    (row,) = runs.rows(STUDY, record, write.folder, 0, ("a", "b"))
    assert (row.values["val_recall/a"], row.values["val_recall/b"]) == (0.5, 0.75)
    assert runs.summary(STUDY, record, ("a", "b"))["test_recall/b"] == 0.25


def _files(of: Material) -> set[str]:
    return {name for parcel in study_run.parcels(of) for name in parcel.sizes}


# --- the journal as it grows


def test_the_surface_is_a_plot_once_a_report_has_drawn_it(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.1, 0.2], "completed")
    of = Material(STUDY, write.folder, CREATED, write.history())
    assert "surface" not in study_run.plots(of)
    found = findings()
    assert found.surface is not None
    drawn = figures.surface(found.surface, found.ridge, "max")
    write_whole(write.folder / "report" / "surface.json", drawn.to_json())
    sent = study_run.plots(of)["surface"]
    assert json.loads(sent.to_json()) == json.loads(drawn.to_json()) and sent.data[0].name == "expected score"


def test_the_report_is_an_artifact_but_of_a_private_study(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    of = Material(STUDY, write.folder, CREATED, write.history())
    assert study_run.report(of) is None  # none was written
    write_whole(write.folder / "report.html", "<p>Here it is.</p>")
    (parcel,) = [parcel for parcel in study_run.parcels(of) if parcel.type == "report"]
    assert (parcel.name, parcel.sizes, parcel.used) == ("one-report", {"report.html": 18}, False)
    private = STUDY.set({"tracking.private": True})
    assert "report" not in {p.type for p in study_run.parcels(Material(private, write.folder, CREATED, of.history))}


def test_the_tail_of_a_growing_journal_gives_each_event_once(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    tail = Tail(write.folder)
    assert tail.read() == ([], True)
    seen = []
    for _ in range(3):
        write.trial("search", [0.1, 0.2], None)
        events, anew = tail.read()
        assert len(events) == 3 and not anew
        seen += events
    assert tail.read() == ([], False)
    path = write.folder / "journal" / "0001.jsonl"
    whole = path.read_bytes()
    write.trial("search", [], None)
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:20])
    assert tail.read() == ([], False)  # half a line
    path.write_bytes(whole + line)
    seen += tail.read()[0]
    assert seen == list(read(write.folder))


def test_the_tail_begins_anew_when_a_new_owner_says_what_counts(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.1, 0.2], None)
    tail = Tail(write.folder)
    assert len(tail.read()[0]) == 3
    write.term(2)
    assert [e["kind"] for e in tail.read()[0]] == ["trial", "epoch", "epoch"]  # nobody has said anything yet
    write.journal.append("open", {"term": 2, "saw_term": 1, "saw": 2})
    events, anew = tail.read()
    assert anew and [e["kind"] for e in events] == ["trial", "epoch", "open"]
    assert events == list(read(write.folder))


# --- which mode, and who has the key


def test_auto_is_online_only_where_a_key_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    auto = Tracking()
    assert launch.mode_of(auto, {}) == "off"
    assert launch.mode_of(auto, {"WANDB_API_KEY": "k" * 40}) == "online"
    assert launch.mode_of(auto, {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}) == "offline"
    assert launch.mode_of(auto, {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "disabled"}) == "off"
    (tmp_path / ".netrc").write_text("machine wandb.example.com login user password " + "k" * 40)
    (tmp_path / ".netrc").chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert launch.mode_of(auto, {}) == "off"
    assert launch.mode_of(auto, {"WANDB_BASE_URL": "https://wandb.example.com"}) == "online"
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.com\n")
    assert launch.mode_of(auto, {}) == "online"
    assert launch.mode_of(Tracking(mode="off"), {"WANDB_API_KEY": "k" * 40}) == "off"


def test_online_without_a_key_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"wandb login.*WANDB_API_KEY.*tracking\.mode=offline"):
        launch.mode_of(Tracking(mode="online"), {})


def test_the_key_is_out_of_the_environment_while_it_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary")
    with pytest.raises(RuntimeError), launch.withheld() as secret:
        assert "WANDB_API_KEY" not in os.environ and secret == {"WANDB_API_KEY": "canary"}
        raise RuntimeError
    assert os.environ["WANDB_API_KEY"] == "canary"


def test_tracking_may_change_when_a_study_is_taken_up_again() -> None:
    other = STUDY.set({"tracking.mode": "offline", "tracking.project": "vision"})
    assert other.tracking.mode == "offline" and other.definition() == STUDY.definition()
    with pytest.raises(ConfigError, match="cannot name a project"):
        STUDY.set({"tracking.project": "a/b"})


def test_trials_are_drawn_over_the_strengths_that_were_searched(tmp_path: Path) -> None:
    write = Writer(tmp_path / "one")
    write.trial("search", [0.1, 0.3], "completed")
    write.trial("search", [], "code_error")
    of = Material(STUDY, write.folder, CREATED, write.history())
    figure = study_run.points(of)
    assert (figure.data[0].x, figure.data[0].marker.color) == ((0.641,), (0.3,))
    fixed = STUDY.set({"augment.strength": 0.5})
    assert study_run.points(Material(fixed, write.folder, CREATED, write.history())) is None
    assert study_run.points(Material(STUDY, write.folder, CREATED, history.History())) is None
