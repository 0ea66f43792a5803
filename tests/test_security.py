"""What strangers may have written: nothing in it is run as code, nothing leads out of its folder; and licences."""

from __future__ import annotations

import ast
import csv
import json
import os
import pickle
import re
import stat
import struct
import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from packaging.requirements import Requirement

from cvtune import best, checkpoint, exports, journal, study, trained
from cvtune.cluster import make_token
from cvtune.durable import write_whole
from cvtune.errors import ConfigError, CvtuneError
from cvtune.event import Event
from cvtune.history import History
from cvtune.lease import Lease
from cvtune.report import compare, curves, page
from tests.report.made import write_study
from tests.test_architecture import each_module, tree

# Calls that run what they read. Those that are safe with an argument are given with it.
RUNS_CODE = (
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.load", "marshal.loads"),
    *("joblib.load", "shelve.open", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen"),
    *("pandas.read_pickle", "pd.read_pickle", "np.fromregex", "torch.hub.load", "torch.jit.load"),
)
SAFE_WITH = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}


def unsafe_calls(source: ast.AST) -> list[str]:
    """Each call in `source` that would run what a file says, with its line."""
    found = []
    for node in ast.walk(source):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
        if name in RUNS_CODE or SAFE_WITH.get(name, "") not in {*said, ""} or "shell=True" in said:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@each_module
def test_no_module_runs_what_a_file_says(module: str) -> None:
    """Two do what looks alike and is asked for by name: `usercode` imports the user's own functions, `building` a
    workflow. Neither is in RUNS_CODE, since both go through the import system; SECURITY.md says that they run."""
    assert not unsafe_calls(tree(module))
    names = {name.name for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert not names & {"loads", "unsafe_load"}, "import the module, so that this test sees what is called"


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_the_lint_sees_each_of_them(line: str) -> None:
    assert unsafe_calls(ast.parse(line))
    assert not unsafe_calls(ast.parse("torch.load(p, weights_only=True); np.load(p, allow_pickle=False); m.eval()"))


# --- crafted files


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def crafted(folder: Path, case: str) -> None:
    """A checkpoint whose hashes are right and whose content is hostile."""
    checkpoint.save(folder, {"w": torch.zeros(2)}, {"step": 1})
    tensors, manifest = folder / checkpoint.TENSORS, folder / checkpoint.MANIFEST
    told = json.loads(manifest.read_text())
    if case == "pickle":
        tensors.write_bytes(pickle.dumps(Bomb(folder.parent / "ran")))
    elif case == "huge header":
        tensors.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    elif case == "other name":
        (folder.parent / "secret").write_bytes(b"x")
        told["files"] = {"../secret": told["files"][checkpoint.TENSORS]}
    elif case == "no tensor":
        told["state"] = {"pairs": [["w", {"tensor": "17"}]]}
    elif case == "no pairs":
        told["state"] = {"pairs": 3}
    elif case == "a list":
        told["files"] = []
    elif case == "format":
        told["format"] = "x"
    elif case == "nested":
        manifest.write_text(json.dumps(told)[:-1] + ',"state":' + "[" * 90_000 + "]" * 90_000 + "}")
        return
    if case in ("pickle", "huge header"):
        told["files"][checkpoint.TENSORS] = {
            "size": tensors.stat().st_size,
            "blake2b": checkpoint._digest(tensors),
        }
    manifest.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "case", ["pickle", "huge header", "other name", "no tensor", "no pairs", "a list", "format", "nested"]
)
def test_a_crafted_checkpoint_is_refused(tmp_path: Path, case: str) -> None:
    crafted(tmp_path / "1", case)
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path / "1")):
        checkpoint.load(tmp_path / "1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [pickle.dumps(Bomb(Path("ran"))), struct.pack("<Q", 2**62), b"", b"\0" * 64])
def test_crafted_weights_are_refused(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / trained.FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=trained.FILE):
        trained.read(tmp_path / trained.FILE)
    assert [path.name for path in tmp_path.iterdir()] == [trained.FILE]


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "$(id)", "a;b", "`id`", "<b>", "=1+1", "a b", "", ".", "a\nb"])
def test_a_studys_name_is_a_plain_one(tmp_path: Path, name: str) -> None:
    """So it can be put into a path, a script, a page and a cell as it is."""
    path = tmp_path / "study.json"
    told = json.loads(study.for_data("digits").to_json({}))
    told["study"]["name"] = name
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="name = "):
        study.read(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"study": 3}', b'{"study": {}, "format": "x"}'])
def test_a_study_that_is_none_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(content)
    with pytest.raises(CvtuneError):
        study.read(path)


@pytest.mark.parametrize("body", ["[1", '"x"', "{", '{"a":1', '{"v":2', '{"v":2,"n":0,"t":0,"kind":7', "[" * 90_000])
def test_a_journal_of_lines_that_are_none_of_ours_is_refused(tmp_path: Path, body: str) -> None:
    """Their checksums are right: who may write the folder can write those too."""
    (tmp_path / "journal").mkdir()
    line = f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'
    (tmp_path / "journal" / "0001.jsonl").write_text(line * 2)
    with pytest.raises(CvtuneError, match=r"0001.jsonl, line 1: damaged"):
        list(journal.read(tmp_path))


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "00001/../..", "", ".", "\u0661", 7, None])
def test_a_journal_cannot_name_a_trial_by_a_path(name: Any) -> None:
    """What is swept lies in trials/<trial>/<attempt>: a name that leads elsewhere would have that deleted."""
    trial = {"kind": "trial", "trial": name, "index": 0, "role": "search", "label": "", "values": {}}
    with pytest.raises(CvtuneError, match="which cvtune never does"):
        History().apply(Event({**trial, "recipe": {}, "t": 0.0, "waiting": False}))


@pytest.mark.parametrize("attempt", ["../..", "1", 1.0, None])
def test_nor_an_attempt(attempt: Any) -> None:
    history = History()
    trial = {"kind": "trial", "trial": "00000", "index": 0, "role": "search", "label": "", "values": {}}
    history.apply(Event({**trial, "recipe": {}, "t": 0.0, "waiting": False}))
    with pytest.raises(CvtuneError, match="an attempt"):
        history.apply(Event({"kind": "segment", "trial": "00000", "attempt": attempt, "segment": 0, "node": ""}))


def test_a_study_is_its_users_alone_until_it_is_shared(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = tmp_path / "runs" / "study"
        Lease(folder).release()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o755  # which may hold those of others
        folder.chmod(0o755)
        Lease(folder).release()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_files_in_a_study_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "open", "x")
        os.umask(0o077)
        write_whole(tmp_path / "private", "x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "private")] == [0o644, 0o600]


def test_rays_token_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cvtune starts Ray: Ray's own would be readable by others under the usual umask."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0o022)
    try:
        make_token()
    finally:
        os.umask(before)
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(token) == 64
    make_token()
    assert path.read_text() == token and [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path.unlink()
    make_token()
    assert not path.exists()


# --- versions with known holes

HOLES = {  # package -> the first version without them
    "ray": (
        "2.56",
        "CVE-2025-62593, CVE-2026-41486, CVE-2026-57516: the code of a job, a Parquet or a tar file runs",
    ),
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747: weights_only can be got round"),
    "pillow": ("13", "what its advisories of October 2026 say"),
    "opencv-python-headless": ("4.12", "CVE-2025-53644: a crafted JPEG writes out of bounds"),
    "wandb": ("0.29", "CVE-2026-91771: a server chooses where a file is written"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: a Parquet file's code"),
}


@pytest.mark.parametrize("name", HOLES)
def test_no_version_with_a_known_hole_may_be_installed(name: str) -> None:
    """Of what reads files of strangers or listens on a network; the pins are newer still."""
    sound, why = HOLES[name]
    allowed = [Requirement(text) for text in distribution("cvtune").requires or ()]
    mine = [requirement for requirement in allowed if requirement.name == name]
    assert mine, name
    for requirement in mine:
        assert not requirement.specifier.contains(f"{sound}.dev0", prereleases=True), why


# --- licences

FREE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|0BSD|CC0|BSL-1\.0|MPL|Mozilla|Kiwi|matplotlib", re.I
)
BINDING = re.compile(r"\b[AL]?GPL|General Public|SSPL|\bBUSL\b|Commons Clause|Non-?[Cc]ommercial|CC-BY-(NC|SA)")
NAMED = {  # what the two patterns do not settle, with the reason why it may be there
    r"nvidia-.*|cuda-toolkit": "NVIDIA's own: what torch loads on a GPU, under terms that allow its use and passing on",
}


def licence(name: str) -> str:
    told = distribution(name).metadata
    classified = [c for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    return " ".join([told.get("License-Expression") or "", *classified, (told.get("License") or "")[:300]])


def needed(name: str, extras: frozenset[str], found: dict[str, frozenset[str]]) -> None:
    """Every installed package that `name` with `extras` needs at run time, itself included."""
    if name in found and extras <= found[name]:
        return
    found[name] = found.get(name, frozenset()) | extras
    for text in distribution(name).requires or ():
        other = Requirement(text)
        if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            try:
                needed(distribution(other.name).metadata["Name"], frozenset(other.extras), found)
            except PackageNotFoundError:  # of an extra that is not installed here
                continue


def test_no_dependency_binds_who_uses_us() -> None:
    """Not even in the extras, as far as they are installed."""
    extras = frozenset(distribution("cvtune").metadata.get_all("Provides-Extra") or ())
    found: dict[str, frozenset[str]] = {}
    needed("cvtune", extras, found)
    assert len(found) > 60
    for name in found:
        told = licence(name)
        known = any(re.fullmatch(pattern, name) for pattern in NAMED)
        assert known or (FREE.search(told) and not BINDING.search(told)), f"{name}: {told!r}"


# --- what names of others do in what is written

HOSTILE = "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
FORMULAS = ("=cmd|' /C calc'!A0", "+1-2", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1")


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path: Path) -> None:
    """Names of classes in `best/`, messages in what `cvtune export` writes; numbers stay numbers."""
    best._write_csv(tmp_path / "best.csv", ["class", *FORMULAS], [[name, -1.5] for name in FORMULAS])
    texts = exports._texts(pa.table({"text": [*FORMULAS, None, "-1.5"], "number": [-1.5] * (len(FORMULAS) + 2)}))
    pa.csv.write_csv(texts, tmp_path / "exported.csv")
    for name in ("best.csv", "exported.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        cells = [cell for row in rows for cell in row]
        assert {f"'{formula}" for formula in FORMULAS} <= set(cells) and "-1.5" in cells
        assert not [cell for cell in cells if cell.strip()[:1] in ("=", "+", "@") or cell.strip()[:2] in ("-r", "-2")]


def test_no_name_becomes_a_part_of_a_page(tmp_path: Path) -> None:
    """Of the plots that are pages by themselves; at the report and `compare` a browser looks (report/test_page.py)."""
    values = {"optim.schedule": HOSTILE, HOSTILE: 0.5}
    entry = {"epoch": 1, "trial": HOSTILE, "step": 1, "values": values}
    told = {"format": 1, "study": HOSTILE, "trial": HOSTILE, "objective": HOSTILE, "score": 0.5}
    curves.write_html(curves.schedule_figure({**told, "epochs": [entry, {**entry, "epoch": 2}]}), tmp_path / "a.html")
    points = [(0.1, 0.2, 0.5, 3, HOSTILE), (0.2, 0.3, 0.6, 9, "00001")]
    curves.write_html(curves.points_figure(points, (HOSTILE, "optim.lr"), HOSTILE), tmp_path / "b.html")
    for name in ("a.html", "b.html"):
        page = (tmp_path / name).read_text()
        assert "document.title" in page and "</script><script>document" not in page and "<img src=x" not in page


def test_no_text_of_a_study_becomes_a_part_of_a_comparison(tmp_path: Path) -> None:
    """Names and values that differ between two recipes, and a metric's name, in a `best/` that others wrote."""
    folders = [write_study(tmp_path, name, 4) for name in ("one", "other")]
    for name, change in (
        ("recipe", {"model": {"pretrained": HOSTILE}, HOSTILE: 1}),
        ("comparison", {"metric": HOSTILE}),
    ):
        path = folders[1] / "best" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    compared = compare.compare(folders)
    rendered = compare.render(compared)
    assert rendered.count("document.title") >= 3, "nothing was shown, so nothing was tested"
    assert "</script><script>document" not in rendered and "<img src=x" not in rendered


def test_every_page_of_a_template_escapes_what_it_is_given() -> None:
    """Autoescape is on, and what is taken for markup already is our own: style, script, pictures, escaped JSON."""
    for path in sorted(Path(page.__file__).parent.glob("*.html")):
        assert "|safe" not in path.read_text().replace(" ", "") and "autoescape" not in path.read_text()
    marked = [
        ast.unparse(n)
        for n in ast.walk(tree("report.page"))
        if isinstance(n, ast.Call) and "Markup" in ast.unparse(n.func)
    ]
    assert len(marked) == 5 and "autoescape=True" in ast.unparse(tree("report.page"))
