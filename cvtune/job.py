"""A study as a Ray job: its submission id, and whether it runs already. Asked by `cluster/ray-job.sh`.

`python -m cvtune.job ARGUMENTS` takes the arguments of `cvtune run` and prints four lines: the state ("new", or Ray's
word for the job that is under way), the submission id, and as JSON the job's metadata and runtime environment.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cvtune import study
from cvtune.cli import app
from cvtune.errors import ClusterError, ConfigError, CvtuneError
from cvtune.upload import EXCLUDES

STUDY = "cvtune_study"  # key of the job's metadata: the study's folder
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
PASSED_ON = ("RAY_JOB_STOP_WAIT_TIME_S", "CVTUNE_STORAGE", "CVTUNE_CACHE")  # no secrets: every user of Ray sees them


@dataclass(frozen=True)
class Job:
    """What Ray says of one submitted job."""

    id: str
    status: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """Submit the study under `id`, or follow the job of that id if `state` is not "new"."""

    state: str
    id: str


def folder_of(arguments: Sequence[str]) -> Path:
    """The folder of the study that `cvtune run ARGUMENTS` would train, without training it.

    Raises:
        ConfigError: an argument is not valid, or the storage is not an absolute path.
    """
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    try:
        given = command.make_context("run", list(arguments)).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error, of typer or of click by version
            raise
        raise ConfigError(f"{error.format_message()} Arguments are those of `cvtune run`.") from None
    values = dict(study.parse_assignment(text) for text in given["settings"] or [])
    chosen = study.load(given["target"]).set({**values, **({"name": given["name"]} if given["name"] else {})})
    if not given["storage"].is_absolute():
        raise ConfigError(
            f"--storage {str(given['storage'])!r}: a Ray job runs in a copy of the working directory, which Ray "
            "deletes afterwards. Give the absolute path of a folder that all nodes share."
        )
    return Path(os.path.normpath(given["storage"] / chosen.name))


def plan(folder: Path, jobs: Iterable[Job]) -> Plan:
    """Under which id to submit the study of `folder`, given all jobs that Ray remembers.

    Ray takes an id only once, so a study's further jobs are counted: cvtune-NAME, cvtune-NAME~2, ... (no name holds a
    '~'). Studies of one name in two folders share the count, and are told apart by the folder in the metadata.
    """
    known, pattern = list(jobs), re.compile(rf"cvtune-{re.escape(folder.name)}(?:~(\d+))?")
    for job in known:
        if job.metadata.get(STUDY) == str(folder) and job.status not in ENDED:
            return Plan(job.status, job.id)
    used = [int(found[1] or 1) for job in known if (found := pattern.fullmatch(job.id))]
    return Plan("new", f"cvtune-{folder.name}" + (f"~{max(used) + 1}" if used else ""))


def ask() -> list[Job]:
    """Every job that the cluster at RAY_API_SERVER_ADDRESS remembers.

    Raises:
        ClusterError: Ray's job client is not installed, or the job server does not answer or refuses the token.
    """
    try:
        import aiohttp  # noqa: F401  # Ray's client needs it, and says so only at its first call
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ClusterError(
            f"`ray job` does not work here ({error}). Install Ray with its job client: "
            'pip install "cvtune[cluster]", or all pins: pip install -r cluster/requirements.txt'
        ) from None
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    try:
        found = JobSubmissionClient(address).list_jobs()
    except AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address} refuses the token: {str(error).splitlines()[0]} Use the token of its head "
            "node, in ~/.ray/auth_token or in the file that RAY_AUTH_TOKEN_PATH names, with RAY_AUTH_MODE=token."
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray job server answers at RAY_API_SERVER_ADDRESS={address} ({type(error).__name__}: {error}). "
            "Give the address of the head node's dashboard, such as http://HEAD:8265."
        ) from None
    return [Job(job.submission_id, str(job.status), job.metadata or {}) for job in found if job.submission_id]


def runtime_env() -> dict[str, Any]:
    """What Ray sets up for the job beside the working directory. Plain JSON."""
    return {
        "excludes": list(EXCLUDES),
        "env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }


def main() -> None:
    """Print the plan for the arguments of the command line."""
    try:
        folder = folder_of(sys.argv[1:])
        chosen = plan(folder, ask())
    except CvtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(chosen.state, chosen.id, json.dumps({STUDY: str(folder)}), json.dumps(runtime_env()), sep="\n")


if __name__ == "__main__":
    main()
