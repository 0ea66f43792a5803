"""The syncer as a process: `python -m cvtune.track STUDY_FOLDER [--watch] [--mode auto|online|offline]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cvtune.errors import CvtuneError
from cvtune.track.command import sync


def main() -> None:
    """Parse the arguments, deliver, and end with the exit code of what came of it."""
    parser = argparse.ArgumentParser(prog="python -m cvtune.track", description="Deliver a study to W&B.")
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--watch", action="store_true", help="follow it until nobody runs it any more")
    parser.add_argument("--mode", default="", choices=("", "auto", "online", "offline"), help="default: the study's")
    given = parser.parse_args()
    try:
        sync(given.study.resolve(), given.watch, given.mode)
    except CvtuneError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
