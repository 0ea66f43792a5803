"""The native launch files: they are valid in their tool's own terms, fit each other and the pins; shell is checked."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

import cvtune
from cvtune import study

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)
PINS = {pin.name: pin for pin in map(Requirement, (CLUSTER / "requirements.txt").read_text().splitlines())}
RAY = str(PINS["ray"].specifier).removeprefix("==")
START_OPTIONS = {option for parameter in ray_start.params for option in parameter.opts}

RAYJOB = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
SPEC = RAYJOB["spec"]
HEAD = SPEC["rayClusterSpec"]["headGroupSpec"]
(WORKERS,) = SPEC["rayClusterSpec"]["workerGroupSpecs"]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
LAUNCHER = (CLUSTER / "ray-cluster.yaml").read_text()


def pod(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A group's pod, and the one container in it."""
    (container,) = group["template"]["spec"]["containers"]
    return group["template"]["spec"], container


def test_the_rayjob_is_valid() -> None:
    VALID.check_schema(SCHEMA)
    VALID.validate(RAYJOB)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key that the API names (keys of free maps, such as labels, are the user's)."""
    free = ("annotations", "labels", "rayStartParams", "requests", "limits")
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if isinstance(tree, dict):
            yield (*path, key)
        if key not in free:
            yield from places(value, (*path, key))


def changed(path: tuple[Any, ...], key: str, value: Any = None) -> dict[str, Any]:
    """The RayJob with the key at `path` renamed to `key`, or set to `value`."""
    wrong = copy.deepcopy(RAYJOB)
    parent = wrong
    for part in path[:-1]:
        parent = parent[part]
    before = parent.pop(path[-1])
    parent[key] = before if value is None else value
    return wrong


def test_a_typo_in_any_key_is_found() -> None:
    paths = list(places(RAYJOB))
    assert len(paths) > 80 and ("spec", "rayClusterSpec", "authOptions", "mode") in paths
    missed = [path for path in paths if VALID.is_valid(changed(path, f"{path[-1]}x"))]
    assert not missed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backoffLimit"), "3"),
        (("spec", "shutdownAfterJobFinishes"), False),  # then no ttlSecondsAfterFinished
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),  # what YAML makes of 2.60 without quotes
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # strings only
        (("spec", "rayClusterSpec", "workerGroupSpecs"), []),
        (("metadata", "name"), "cvtune_asha"),
    ],
)
def test_a_wrong_value_is_found(path: tuple[str, ...], value: Any) -> None:
    assert path in list(places(RAYJOB)) or path[-2] == "rayStartParams"
    assert not VALID.is_valid(changed(path, path[-1], value))


def test_image_ray_and_pins_agree() -> None:
    tag = f":{cvtune.__version__}-ray{RAY}"
    assert SPEC["rayClusterSpec"]["rayVersion"] == RAY
    assert pod(HEAD)[1]["image"] == pod(WORKERS)[1]["image"] and pod(HEAD)[1]["image"].endswith(tag)
    assert tag in DOCKERFILE
    assert {
        "aiohttp",
        "aiohttp-cors",
        "prometheus-client",
        "opencensus",
    } <= PINS.keys()


def test_the_rayjob_resumes_one_study_and_stops_it_in_order() -> None:
    """Every start has the same command; preStop names the study that the command runs, and has time for it."""
    words = shlex.split(SPEC["entrypoint"])
    assert words[:4] == ["python", "-m", "cvtune.cli", "run"] and SPEC["backoffLimit"] > 0
    workflow = ROOT / Path(words[4]).relative_to("/opt/cvtune")
    stop = pod(HEAD)[1]["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[:4] == ["python", "-m", "cvtune.cli", "stop"] and stop[4] == study.load(str(workflow)).name
    storage = words[words.index("--storage") + 1]
    assert stop[stop.index("--storage") + 1] == storage
    assert pod(HEAD)[0]["terminationGracePeriodSeconds"] > int(stop[stop.index("--wait") + 1])
    for group in (HEAD, WORKERS):
        spec, container = pod(group)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert set(mounts.values()) <= volumes.keys()
        assert "persistentVolumeClaim" in volumes[mounts[storage]]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        cache = next(variable["value"] for variable in container["env"] if variable["name"] == "CVTUNE_CACHE")
        assert "medium" not in volumes[mounts[cache]]["emptyDir"]
        assert spec["securityContext"]["runAsUser"] == int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1])
    claim = yaml.safe_load((CLUSTER / "rayjob-storage.yaml").read_text())
    assert claim["metadata"]["name"] == volumes[mounts[storage]]["persistentVolumeClaim"]["claimName"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_trials_run_on_the_workers_only() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0" and HEAD["rayStartParams"]["num-gpus"] == "0"
    assert not [name for name in pod(HEAD)[1]["resources"]["limits"] if "gpu" in name]
    assert pod(WORKERS)[1]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for group in (HEAD, WORKERS):
        assert {f"--{name}" for name in group["rayStartParams"]} <= START_OPTIONS


def test_the_image_is_built_from_what_is_there() -> None:
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    let_through = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "cluster/requirements.txt" in copied and "cvtune" in copied
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in let_through
    assert not re.search(r"://", re.sub(r"^#.*$", "", DOCKERFILE, flags=re.MULTILINE))


def launcher_configs() -> dict[str, dict[str, Any]]:
    """The file as it stands, and with its lines for AWS in place of the first ones."""
    own = yaml.safe_load(LAUNCHER)
    lines = LAUNCHER[LAUNCHER.index("\n# provider:") :].strip().splitlines()
    return {"own machines": own, "AWS": {**own, **yaml.safe_load("\n".join(line[2:] for line in lines))}}


@pytest.mark.parametrize("kind", ["own machines", "AWS"])
def test_the_launcher_file_is_valid_for_ray(kind: str) -> None:
    config = launcher_configs()[kind]
    assert config["provider"]["type"] == {"own machines": "local", "AWS": "aws"}[kind]
    prepared = prepare_config(config)
    validate_config(prepared)
    assert sum(kind.get("min_workers", 0) for kind in prepared["available_node_types"].values()) >= 2
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "setup_command": []}))


def test_the_launcher_brings_token_pins_and_code() -> None:
    config = launcher_configs()["own machines"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [c for name in ("head", "worker") for c in config[f"{name}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    for command in starts:
        words = shlex.split(command.partition("ray start")[2])
        assert {word.partition("=")[0] for word in words} <= START_OPTIONS
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("cluster/requirements.txt" in command for command in config["setup_commands"])
    for command in [*config["setup_commands"], *starts]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_every_path_that_starts_ray_has_a_token_and_no_open_dashboard() -> None:
    """Each file of cluster/ that starts Ray, or leaves that to `cvtune run`; a new one is looked at too."""
    assert SPEC["rayClusterSpec"]["authOptions"]["mode"] == "token"
    starting = [path for path in CLUSTER.iterdir() if re.search(r"\b(ray start|cvtune run)\b", path.read_text())]
    found = {path.name: path.read_text() for path in starting if path.suffix in (".sbatch", ".yaml", ".sh")}
    assert {"slurm.sbatch", "slurm-one-node.sbatch", "slurm-array.sbatch", "worker.sbatch", "ray-job.sh"} <= set(found)
    for name, text in found.items():
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert any(re.search(r"RAY_AUTH_MODE=\S*token|mode: token", line) for line in lines), name
        for line in lines:
            if ("--head" in line and "ray start" in line) or "role=(--head" in line:
                assert "--dashboard-host=127.0.0.1" in line or "--include-dashboard=false" in line, f"{name}: {line}"


SCRIPTS = [*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch"), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (on Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", list(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_fail_early_and_print_no_commands(script: Path) -> None:
    text = script.read_text()
    assert "set -euo pipefail" in text and not re.search(r"set -\w*x|xtrace", text)
    assert not re.search(r"(echo|printf).*TOKEN", text)
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
