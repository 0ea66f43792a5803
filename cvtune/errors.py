"""What cvtune raises on purpose: each error is one paragraph for a person and one exit code for a script."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cvtune.printable import printable


class CvtuneError(Exception):
    """Base of every error that a user can cause or mend. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(CvtuneError):
    """A name, a value or a combination in a recipe, space, study or command is not valid."""

    exit_code = 2


class DataError(CvtuneError):
    """The images or labels cannot be used as they are."""

    exit_code = 3


class ClusterError(CvtuneError):
    """Ray could not be reached, or the cluster cannot give what a trial asks for."""

    exit_code = 4


class OwnedError(CvtuneError):
    """Another process owns the study."""

    exit_code = 5


def did_you_mean(name: str, valid: Iterable[str], show: int = 12) -> str:
    """A sentence that helps after an unknown name: the nearest valid one, then what is valid.

    Lists at most `show` names; of dotted names those of the section that was probably meant.
    """
    known = sorted(valid)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # "strenght" should find "augment.strength": compare the last part of dotted names too
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
        near = [tails[t] for t in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)]
    guess = f"Did you mean {near[0]!r}? " if near else ""
    section = (near[0] if near else name).rpartition(".")[0]
    listed = [k for k in known if section and k.startswith(f"{section}.")] or known
    rest = f" and {len(known) - len(listed[:show])} more" if len(known) > len(listed[:show]) else ""
    return f"{guess}Valid: {', '.join(listed[:show])}{rest}." if known else "There are none."


def config_error(error: ValidationError, prefix: str = "") -> ConfigError:
    """Retell pydantic's first complaint in our style: the dotted name, the value, the rule, what is valid."""
    first = error.errors(include_url=False)[0]
    where = printable(".".join(str(part) for part in first["loc"] if not str(part).startswith("function-")))
    name = ".".join(part for part in (prefix, where) if part)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{name!r} is not a field here. Remove it or correct its name.")
    rule = printable(first["msg"].removeprefix("Value error, "))
    value = "" if first["type"] == "missing" else f" = {short(first['input'])}"
    return ConfigError(f"{name or 'value'}{value}: {rule[:1].lower()}{rule[1:].rstrip('.')}.")


def told(error: BaseException) -> str:
    """An exception of somebody's code in one line: its class, its text, and the line of their code that failed."""
    frames = [f for f in traceback.extract_tb(root_of(error).__traceback__) if "site-packages" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}"[:2000] + where


def root_of(error: BaseException) -> BaseException:
    """What happened, where `error` is how it was noticed (`raise ... from ...`)."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def short(value: Any, limit: int = 80) -> str:
    """A value as it is written in Python, cut off behind `limit` letters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
