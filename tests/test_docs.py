"""What the documents say is true: commands parse, paths exist, names are where they are said to be, pins fit."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cvtune
from cvtune import study
from cvtune.advise import changed, load
from cvtune.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CLUSTER = (ROOT / "cluster" / "README.md").read_text()
REFERENCES = [path.read_text() for path in sorted((ROOT / "cvtune" / "docs").glob("*.md"))]
PINS = (ROOT / "cluster" / "requirements.txt").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

MARKER = r"[()]?[\w.]+ (==|!=|<|<=|>|>=) '[\w.]+'[()]?"
PIN = re.compile(rf"[a-z0-9][a-z0-9-]*==[0-9][0-9A-Za-z.]*( ; {MARKER}( (and|or) {MARKER})*)?")
# Written so that no pattern matches its own text.
REGISTRY = re.compile(r"index[-_]url|files\.pythonhosted|pypi\.org|https?://[^ ]+/simple", re.IGNORECASE)


def code_lines(text: str, language: str = "sh") -> list[str]:
    """The lines of every fenced block of a language."""
    return [line for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def cvtune_calls(text: str) -> Iterator[list[str]]:
    """The arguments of each `cvtune ...` in fenced blocks and in inline code."""
    for snippet in [*code_lines(text), *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]:
        for part in snippet.split("&&"):
            words = [word for word in shlex.split(part) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            for call in (["cvtune"], ["uv", "run", "cvtune"]):
                if words[: len(call)] == call:
                    yield words[len(call) :]
            if "cvtune.cli" in words:
                yield words[words.index("cvtune.cli") + 1 :]


CALLS = [call for text in (README, CLUSTER, *REFERENCES) for call in cvtune_calls(text) if call]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_command_in_the_documents_parses(call: list[str]) -> None:
    if call[0].startswith("--"):
        assert call in (["--help"], ["--version"])
        return
    assert call[0] in COMMANDS, f"`cvtune {call[0]}` is no command"
    arguments = [word for word in call[1:] if word != "--help" and not word.startswith("[")]
    command = COMMANDS[call[0]]
    context = command.make_context(call[0], arguments, resilient_parsing=len(call) == 1)  # raises on unknown options
    values = dict(study.parse_assignment(text) for text in context.params.get("settings") or [])
    for path in context.params.get("rules") or []:
        if str(path).startswith("workflows/"):  # no placeholder, nor a comment behind the command
            changed(load(ROOT / path), values)  # rules have settings of their own
    if "rules" not in context.params:
        study.for_data("digits").set({name: value for name, value in values.items() if name != "name"})
    if str(context.params.get("target", "")).endswith(".py"):
        assert (ROOT / str(context.params["target"])).is_file()


def test_documents_show_the_main_commands() -> None:
    """The parametrized test above proves nothing if the documents' commands are not found any more."""
    shown = [" ".join(call) for call in CALLS]
    assert "run workflows/quickstart.py" in shown
    assert any(call.startswith("run PHOTOS --set") for call in shown)
    assert any("--storage" in call for call in shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_names_every_command(command: str) -> None:
    assert re.search(rf"`cvtune {command}\b", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_help(command: str) -> None:
    """The help begins with a verb ('Draw a contact sheet'), and every argument and option has a text."""
    text = COMMANDS[command].help or ""
    first = re.match(r"[A-Z][a-z]+", text)
    assert first and first[0] not in ("The", "An", "This", "All") and not first[0].endswith(("s", "ing", "er")), text
    assert text.rstrip().endswith(".")
    bare = [p.name for p in COMMANDS[command].params if p.name != "help" and not getattr(p, "help", None)]
    assert not bare, f"without help: {bare}"


def test_readme_has_one_test_command_and_ci_takes_it_from_there() -> None:
    first = next(line for line in README.splitlines() if "uv run pytest" in line)
    assert first == "pip install uv && uv run pytest"
    assert first in code_lines(README)
    script = ROOT / ".ci" / "run"
    assert "grep -m 1 'uv run pytest' README.md" in script.read_text()
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def map_rows() -> list[str]:
    section = README.partition("## Where to change what")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ") and "open ..." not in line]


@pytest.mark.parametrize("row", map_rows())
def test_map_leads_to_what_it_names(row: str) -> None:
    spans = re.findall(r"`([^`]+)`", row.rpartition(" | ")[2] if row.count(" | ") > 1 else row.split("|")[2])
    paths = [span for span in spans if "/" in span]
    assert paths, f"no path in {row!r}"
    assert all((ROOT / path).exists() for path in paths), paths
    for names, path in re.findall(r"((?:`\w+` in )+)`([\w/]+\.py)`", row):
        source = (ROOT / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b.*=", source, re.MULTILINE), f"{name} is not in {path}"


def test_map_was_found() -> None:
    assert len(map_rows()) > 10


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "SECURITY.md",
        "cluster/README.md",
        "cvtune/CHANGELOG.md",
        "cvtune/docs/tracking.md",
        "cvtune/docs/own_loop.md",
    ],
)
def test_links_within_the_repository_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text())
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


def test_changelog_and_project_agree_on_the_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "cvtune" / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == cvtune.__version__ == PROJECT["version"]


def test_pins_are_names_and_versions_only() -> None:
    """An environment marker may follow: some packages exist for one platform, some differ by Python version."""
    assert PINS
    assert not [line for line in PINS if not PIN.fullmatch(line)]


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_direct_dependency_is_pinned_within_its_range(dependency: str) -> None:
    wanted = Requirement(dependency)
    name = canonicalize_name(wanted.name)
    pinned = [pin for pin in map(Requirement, PINS) if canonicalize_name(pin.name) == name]
    assert pinned, f"{name} has no pin: make cluster/requirements.txt anew (see README, Contributing)"
    for pin in pinned:
        version = str(pin.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), f"{pin} is not {wanted}"


def test_no_tracked_file_names_a_package_registry() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert "pyproject.toml" in tracked
    assert not {"uv.lock", "uv.toml"} & {Path(name).name for name in tracked}
    named = [name for name in tracked if REGISTRY.search((ROOT / name).read_text(errors="ignore"))]
    assert not named
