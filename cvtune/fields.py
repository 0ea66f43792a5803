"""Fields of frozen values: their description, unit and range are written once, where the field is declared."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cvtune.errors import ConfigError, did_you_mean

USER_CODE = re.compile(r"python:[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Section(BaseModel):
    """Base of every frozen value: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def field(default: Any, description: str, *, unit: str = "", mutable: bool = False, **rules: Any) -> Any:
    """A field with its documentation. `mutable` values may change between epochs (see `Recipe.changes`)."""
    return Field(default, description=description, json_schema_extra={"unit": unit, "mutable": mutable}, **rules)


def one_of_or_code(name: str, value: str, valid: tuple[str, ...], *more: str) -> str:
    """`value` when it is one of `valid` or names user code; else a ConfigError that lists what is valid."""
    if value in valid or USER_CODE.fullmatch(value):
        return value
    raise ConfigError(
        f"{name} = {value!r} is not known. {did_you_mean(value, [*valid, *more, 'python:module:function'])}"
    )


@dataclass(frozen=True)
class FieldDoc:
    """What is known of one dotted name without building anything."""

    name: str
    description: str
    unit: str
    kind: type
    optional: bool
    default: Any
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    mutable: bool


def describe(model: type[BaseModel], prefix: str = "") -> dict[str, FieldDoc]:
    """The scalar fields of a model and of its sections, by dotted name."""
    docs: dict[str, FieldDoc] = {}
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            docs |= describe(annotation, f"{prefix}{name}.")
            continue
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        options = typing.get_args(annotation) if union else (annotation,)
        inner = next((o for o in options if o is not type(None)), None)
        choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
        kind = str if choices else inner
        if kind not in (bool, int, float, str):
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        bounds = {key: getattr(m, key) for m in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
        docs[prefix + name] = FieldDoc(
            name=prefix + name,
            description=info.description or "",
            unit=str(extra.get("unit", "")),
            kind=typing.cast(type, kind),
            optional=type(None) in options,
            default=info.default,
            choices=tuple(map(str, choices)),
            low=bounds.get("ge", bounds.get("gt")),
            high=bounds.get("le", bounds.get("lt")),
            mutable=bool(extra.get("mutable", False)),
        )
    return docs
