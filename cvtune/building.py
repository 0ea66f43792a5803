"""What a user's Python file builds: a workflow its study, a file of advice its rule."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from cvtune.errors import ConfigError, config_error, did_you_mean

T = TypeVar("T")


def built(path: Path, function: str, kind: type[T], what: str) -> T:
    """What `function` in the file returns; the file may import its neighbors.

    Args:
        what: the file in words, such as "a workflow".

    Raises:
        ConfigError: the file or the function is missing, fails, or returns no `kind`.
    """
    if not path.is_file():
        others = [p.name for p in path.parent.glob("*.py")]
        near = did_you_mean(path.name, others) if others else "Check the path; no such file is in that folder."
        raise ConfigError(f"{what.partition(' ')[2]} {str(path)!r} does not exist. {near}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"cvtune_{function}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build = getattr(module, function, None)
        result = build() if callable(build) else None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {config_error(error)}") from None
    except Exception as error:  # whatever a user's file may raise
        raise ConfigError(f"{path}: building the {function} failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, kind):
        raise ConfigError(f"{path}: {what} needs a function `{function}()` that returns a cvtune {kind.__name__}.")
    return result
