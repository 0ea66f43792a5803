"""User code that a study names as 'python:module:function': found, imported and hashed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvtune.errors import ConfigError, did_you_mean
from cvtune.fields import USER_CODE

_REMEDY = "The module must be importable on every worker: put its file next to the workflow or install it."


def load_function(ref: str, what: str) -> Callable[..., Any]:
    """The function behind `ref` = 'python:module:function'. Imports the module. `what` names the field in errors.

    Raises:
        ConfigError: `ref` is malformed, the module is missing or fails, or holds no such function.
    """
    module_name, function_name = _parse(ref, what)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} = {ref!r}: module {error.name!r} was not found. {_REMEDY}") from error
    except Exception as error:  # whatever a user's module may raise
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{what} = {ref!r}: importing {module_name!r} failed ({reason}). {_REMEDY}") from error
    function = getattr(module, function_name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    fault = "is no function" if hasattr(module, function_name) else "does not exist"
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name}
    offered = [name for name, value in own.items() if callable(value) and not name.startswith("_")]
    raise ConfigError(
        f"{what} = {ref!r}: {function_name!r} {fault} in {module.__file__}. {did_you_mean(function_name, offered)}"
    )


def source_hash(ref: str) -> str:
    """The SHA-256 (hex) of the file that holds `ref`'s module. Does not execute it (only packages above it).

    Raises:
        ConfigError: `ref` is malformed, or the module has no source file that can be found.
    """
    module_name, _ = _parse(ref, "user code")
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception as error:  # a package above the module is missing or fails
        raise ConfigError(f"{ref!r}: {type(error).__name__}: {error}. {_REMEDY}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"{ref!r}: module {module_name!r} was not found as a file. {_REMEDY}")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _parse(ref: str, what: str) -> tuple[str, str]:
    if not USER_CODE.fullmatch(ref):
        raise ConfigError(f"{what} = {ref!r}: write 'python:module:function', for example 'python:my_data:load'.")
    _, module_name, function_name = ref.split(":")
    return module_name, function_name
