"""What a Ray job would upload is measured as Ray packs it, and refused before it is sent."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from cvtune.errors import ConfigError
from cvtune.upload import EXCLUDES, LIMIT, check, measure


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory with everything that Ray treats in its own way."""
    root = tmp_path / "work"
    put(
        root,
        {
            "workflow.py": "x" * 1000,
            "src/model.py": "y" * 500,
            "src/generated/out.txt": "z" * 10_000,
            "src/.gitignore": "generated/\n",
            "notes/kept.md": "k" * 70,
            "notes/draft.md": "d" * 8000,
            ".rayignore": "*.npz\nnotes/draft.md\n",
            ".gitignore": "/wandb/\n*.log\n!keep.log\n",
            "photos.npz": "p" * 9000,
            "a.log": "l" * 9000,
            "keep.log": "l" * 90,
            "wandb/run.bin": "w" * 9000,
            ".git/objects/pack": "g" * 9000,
            ".venv/lib/huge.so": "v" * 9000,
            "src/__pycache__/model.pyc": "c" * 9000,
            "studies/first/journal/0001.jsonl": "s" * 9000,
            "src/studies/own.py": "o" * 40,
        },
    )
    put(tmp_path / "elsewhere", {"linked.bin": "b" * 3000})
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "nowhere").symlink_to(tmp_path / "missing")
    (root / "empty").mkdir()
    return root


def packed_by_ray(root: Path, archive: Path) -> Path:
    create_package(
        str(root),
        archive,
        include_gitignore=True,
        excludes=[*get_runtime_env_default_excludes(), *EXCLUDES],
        logger=None,
    )
    return archive


def test_it_is_what_ray_packs_to_the_byte(tree: Path, tmp_path: Path) -> None:
    archive, left_out = tmp_path / "ray.zip", [*get_runtime_env_default_excludes(), *EXCLUDES]
    create_package(str(tree), archive, include_gitignore=True, excludes=left_out)
    assert measure(tree).size == archive.stat().st_size
    tops = {name.split("/")[0] for name in zipfile.ZipFile(archive).namelist()}
    assert {name for name, _ in measure(tree).entries} == tops
    assert tops == {"workflow.py", "src", "notes", ".rayignore", ".gitignore", "keep.log", "link", "empty"}


def test_entries_come_largest_first_and_links_count_with_what_they_lead_to(tree: Path) -> None:
    entries = measure(tree).entries
    assert entries[0][0] == "link" and entries[0][1] > 3000
    assert [size for _, size in entries] == sorted((size for _, size in entries), reverse=True)


def test_rays_switches_are_followed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measure(tree).size
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "link, notes")
    assert measure(tree).size < before - 3000
    monkeypatch.delenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES")
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert measure(tree).size > before + 27_000  # the log, wandb/ and src/generated/ come along; .rayignore still holds


def test_a_link_in_a_circle_is_named(tree: Path) -> None:
    (tree / "src" / "up").symlink_to(tree)
    with pytest.raises(ConfigError, match=r"src/up' is a symbolic link back to .*work': Ray would pack .*\.rayignore"):
        measure(tree)
    put(tree / "src", {".rayignore": "up\n"})
    assert measure(tree).size < 10_000


def test_two_links_to_one_folder_are_no_circle(tree: Path, tmp_path: Path) -> None:
    once = measure(tree).size
    (tree / "again").symlink_to(tmp_path / "elsewhere")
    assert measure(tree).size > once + 3000


def test_too_much_is_refused_with_the_largest_entries_and_what_to_do(tree: Path) -> None:
    size = measure(tree).size
    assert check(tree, size).size == size
    with pytest.raises(ConfigError, match=r"at most 0\.0 MiB\. Largest: link \(0\.0 MiB\), workflow\.py .*\.rayignore"):
        check(tree, size - 1)


def test_the_limit_is_that_of_rays_job_server() -> None:
    assert LIMIT == DASHBOARD_CLIENT_MAX_SIZE
    assert set(get_runtime_env_default_excludes()) <= set(EXCLUDES)


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    with (tmp_path / "photos.npz").open("wb") as file:
        os.truncate(file.fileno(), 150 * 2**20)
    line = [sys.executable, "-m", "cvtune.upload"]
    done = subprocess.run([*line, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "photos.npz (150.0 MiB)" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*line, str(tmp_path / "no")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is not a folder" in done.stderr
    (tmp_path / ".rayignore").write_text("*.npz\n")
    done = subprocess.run([*line, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "0.0 MiB to upload" in done.stderr
