"""Space: which values of a Recipe are searched, over which domain, under which condition."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from cvtune.errors import ConfigError, config_error, did_you_mean
from cvtune.recipe import FIELDS, Recipe, Section, Value

BUNDLE = "regularize.strength"
NOTHING: Mapping[str, Value] = types.MappingProxyType({})
KNOBS = tuple(name for name in FIELDS if name.startswith("regularize.") and name != BUNDLE)


class _Interval(Section):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self

    def edges(self) -> tuple[Value, ...]:
        """The values a domain must be able to build: both ends, or every choice."""
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether `value` may be proposed. Whole numbers count, True and False do not."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class Uniform(_Interval):
    """Every value in [low, high] alike."""

    kind: Literal["uniform"] = "uniform"

    def __init__(self, low: float, high: float, **kind: Any) -> None:
        super().__init__(**{"low": low, "high": high, **kind})

    def at(self, u: float) -> float:
        """The value at quantile `u` in [0, 1]."""
        return min(self.low + u * (self.high - self.low), self.high)  # the sum may leave the range by one rounding

    def quantile(self, value: Any) -> float:
        """The quantile of a value that the domain contains; inverse of `at`."""
        return float((value - self.low) / (self.high - self.low))


class LogUniform(_Interval):
    """Every order of magnitude in [low, high] alike; low > 0."""

    kind: Literal["log_uniform"] = "log_uniform"

    def __init__(self, low: float, high: float, **kind: Any) -> None:
        super().__init__(**{"low": low, "high": high, **kind})

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.low <= 0:
            raise ConfigError(f"LogUniform(low={self.low:g}, high={self.high:g}): low must be above 0.")
        return self

    def at(self, u: float) -> float:
        value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return min(max(value, self.low), self.high)  # exp(log(x)) may leave the range by one rounding

    def quantile(self, value: Any) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)


class IntUniform(Section):
    """Every whole number from low to high alike, both included."""

    kind: Literal["int_uniform"] = "int_uniform"
    low: int
    high: int

    def __init__(self, low: int, high: int, **kind: Any) -> None:
        super().__init__(**{"low": low, "high": high, **kind})

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self

    def at(self, u: float) -> int:
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def quantile(self, value: Any) -> float:
        return float((value - self.low + 0.5) / (self.high - self.low + 1))  # the middle of those that give `value`

    def edges(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


class Choice(Section):
    """One of the listed values, all alike."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...]

    def __init__(self, *values: Value, **fields: Any) -> None:
        super().__init__(**({"values": values} if values else fields))

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.values) < 2 or len(set(map(repr, self.values))) < len(self.values):
            raise ConfigError(f"Choice{self.values!r}: list at least two different values.")
        return self

    def at(self, u: float) -> Value:
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def quantile(self, value: Any) -> float:
        return (self.position(value) + 0.5) / len(self.values)

    def edges(self) -> tuple[Value, ...]:
        return self.values

    def contains(self, value: Any) -> bool:
        return any(_same(value, listed) for listed in self.values)

    def position(self, value: Any) -> int:
        """Which of the listed values it is, counted from 0; 1 is not True."""
        return next(i for i, listed in enumerate(self.values) if _same(value, listed))


Domain = Annotated[Uniform | LogUniform | IntUniform | Choice, Field(discriminator="kind")]


class When(Section):
    """A condition: the value is searched only while `name` is one of `values`."""

    name: str
    values: tuple[Value, ...]

    def __init__(self, name: str, *allowed: Value, **fields: Any) -> None:
        super().__init__(**{"name": name, **({"values": allowed} if allowed else fields)})


class Space(Section):
    """Dotted name -> domain, with conditions.

    Attributes:
        domains: what is searched.
        conditions: dotted name -> `When`; the named value is drawn only while the condition holds.
        knobs_win: allows a strength and a knob that it expands to in one space; the knob then wins.

    Raises:
        ConfigError: an unknown name, an end of a domain outside the field's range, a condition on a name
            that is not searched or that leads back to itself, or a strength beside one of its own knobs.
    """

    domains: dict[str, Domain] = {}
    conditions: dict[str, When] = {}
    knobs_win: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, data: Any) -> Any:
        # Names first: a mistyped name should hear "did you mean", whatever else is wrong with its domain.
        for name in dict(data.get("domains", {})) if isinstance(data, dict) else {}:
            if name not in FIELDS:
                raise ConfigError(f"space: {name!r} is not a value of a recipe. {did_you_mean(name, FIELDS)}")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, domain in self.domains.items():
            for value in domain.edges():
                try:
                    Recipe().replace({name: value})
                except ConfigError as error:
                    raise ConfigError(f"space: {error}") from None
        for name, when in self.conditions.items():
            self._check_condition(name, when)
        both = [knob for knob in KNOBS if BUNDLE in self.domains and knob in self.domains]
        if both and not self.knobs_win:
            raise ConfigError(
                f"space: {both[0]!r} is searched beside {BUNDLE!r}, which expands to it. Search one of them, "
                "or say that the knob wins with space(..., knobs_win=True)."
            )
        if "max_epochs" in self.domains:
            raise ConfigError(
                "space: 'max_epochs' cannot be searched, because scores are compared at equal length of the rate "
                "schedule. Set it, and let the scheduler stop trials early."
            )
        list(self.order())
        return self

    def _check_condition(self, name: str, when: When) -> None:
        for searched in (name, when.name):
            if searched not in self.domains:
                raise ConfigError(
                    f"space: the condition {name!r} if {when.name!r} needs {searched!r} to be searched. "
                    f"{did_you_mean(searched, self.domains)}"
                )
        parent = self.domains[when.name]
        if isinstance(parent, Choice) and (wrong := [v for v in when.values if v not in parent.values]):
            raise ConfigError(
                f"space: the condition on {name!r} names {wrong[0]!r}, which {when.name!r} never takes. "
                f"Valid: {', '.join(map(repr, parent.values))}."
            )

    def order(self) -> Iterator[str]:
        """The searched names, each after the one that its condition asks for."""
        done: set[str] = set()
        while len(done) < len(self.domains):
            ready = [
                name
                for name in self.domains
                if name not in done and (name not in self.conditions or self.conditions[name].name in done)
            ]
            if not ready:
                loop = sorted(set(self.domains) - done)
                raise ConfigError(f"space: the conditions on {', '.join(loop)} ask for one another in a circle.")
            yield from ready
            done.update(ready)

    def holds(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether the condition on `name`, if it has one, is met by `values`."""
        when = self.conditions.get(name)
        return when is None or (when.name in values and values[when.name] in when.values)

    def pick(self, quantiles: Mapping[str, float], given: Mapping[str, Value] = NOTHING) -> dict[str, Value]:
        """The values at the given quantiles in [0, 1], names whose condition fails left out.

        Every sampler comes through here, so conditions are honored in one place. `given` values are kept as they are.
        """
        values: dict[str, Value] = {}
        for name in self.order():
            if self.holds(name, values):
                values[name] = given[name] if name in given else self.domains[name].at(quantiles[name])
        return values

    def restrict(self, recipe: Mapping[str, Value]) -> dict[str, Value] | None:
        """The searched values of a whole recipe; None if one of them lies outside its domain."""
        values: dict[str, Value] = {}
        for name in self.order():
            if self.holds(name, values):
                if name not in recipe or not self.domains[name].contains(recipe[name]):
                    return None
                values[name] = recipe[name]
        return values

    def encode(self, values: Mapping[str, Value]) -> list[float]:
        """One quantile in [0, 1] for each searched name, in the order of `domains`; 0.5 for those without a value."""
        return [d.quantile(values[name]) if name in values else 0.5 for name, d in self.domains.items()]

    def check_point(self, values: Mapping[str, Value]) -> None:
        """Refuse a point that no searcher could propose.

        Raises:
            ConfigError: a name that is not searched, or a value outside its domain.
        """
        for name, value in values.items():
            if name not in self.domains:
                raise ConfigError(f"point: {name!r} is not searched. {did_you_mean(name, self.domains)}")
            if not self.domains[name].contains(value):
                domain = self.domains[name]
                raise ConfigError(
                    f"point: {name} = {value!r} lies outside "
                    f"{type(domain).__name__}({', '.join(map(repr, domain.edges()))}). "
                    "Change the value, or widen the domain."
                )

    def sample(self, rng: np.random.Generator, given: Mapping[str, Value] = NOTHING) -> dict[str, Value]:
        """One random point. Draws for every name, so that a condition does not shift the other draws."""
        return self.pick({name: float(rng.random()) for name in self.domains}, given)

    def without(self, names: set[str]) -> Space:
        """This space with some names fixed: they and the conditions on them leave it."""
        return Space(
            domains={n: d for n, d in self.domains.items() if n not in names},
            conditions={n: w for n, w in self.conditions.items() if n not in names and w.name not in names},
            knobs_win=self.knobs_win,
        )


def space(domains: Mapping[str, Any], conditions: Mapping[str, When] | None = None, knobs_win: bool = False) -> Space:
    """A Space from keyword-free mappings, with errors in cvtune's style.

    Example:
        >>> space({"optim.lr": LogUniform(1e-4, 1e-2)}).domains["optim.lr"].at(0.5)  # doctest: +ELLIPSIS
        0.001...
    """
    try:
        return Space(domains=dict(domains), conditions=dict(conditions or {}), knobs_win=knobs_win)
    except ValidationError as error:
        raise config_error(error, "space") from None


def _same(one: Value, other: Value) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _check_order(domain: _Interval | IntUniform) -> None:
    if not domain.low < domain.high:
        raise ConfigError(
            f"{type(domain).__name__}(low={domain.low:g}, high={domain.high:g}): the range is upside down or empty. "
            "low must be below high."
        )
