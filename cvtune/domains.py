"""Domains: the values that one searched name may take, each with its quantiles in [0, 1]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cvtune.errors import ConfigError
from cvtune.fields import Section
from cvtune.recipe import Value


def _likely() -> Any:
    """Part of a range; a domain without one is written as if there were no such field."""
    return Field(None, exclude_if=lambda value: value is None)


class _Interval(Section, ABC):
    low: float
    high: float
    likely: tuple[float, float] | None = _likely()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self

    @abstractmethod
    def quantile(self, value: Any) -> float:
        """The quantile of a value that the domain contains; inverse of `at`."""

    def likely_quantiles(self) -> tuple[float, float]:
        """Where `likely` begins and ends; 0 and 1 where nothing is known of it."""
        return (self.quantile(self.likely[0]), self.quantile(self.likely[1])) if self.likely else (0.0, 1.0)

    def edges(self) -> tuple[Value, ...]:
        """The values a domain must be able to build: both ends, or every choice."""
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether `value` may be proposed. Whole numbers count, True and False do not."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class Uniform(_Interval):
    """Every value in [low, high] alike.

    Attributes:
        likely: a part of the range, in which the best value probably lies: `Space.sample` draws there more often.

    Example:
        >>> Uniform(0, 1, likely=(0, 0.6)).likely_quantiles()
        (0.0, 0.6)
    """

    kind: Literal["uniform"] = "uniform"

    def __init__(self, low: float, high: float, **others: Any) -> None:
        super().__init__(**{"low": low, "high": high, **others})

    def at(self, u: float) -> float:
        """The value at quantile `u` in [0, 1]."""
        return min(self.low + u * (self.high - self.low), self.high)  # the sum may leave the range by one rounding

    def quantile(self, value: Any) -> float:
        return float((value - self.low) / (self.high - self.low))


class LogUniform(_Interval):
    """Every order of magnitude in [low, high] alike; low > 0. `likely` as in `Uniform`."""

    kind: Literal["log_uniform"] = "log_uniform"

    def __init__(self, low: float, high: float, **others: Any) -> None:
        super().__init__(**{"low": low, "high": high, **others})

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
    """Every whole number from low to high alike, both included. `likely` as in `Uniform`, both ends included."""

    kind: Literal["int_uniform"] = "int_uniform"
    low: int
    high: int
    likely: tuple[int, int] | None = _likely()

    def __init__(self, low: int, high: int, **others: Any) -> None:
        super().__init__(**{"low": low, "high": high, **others})

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self

    def likely_quantiles(self) -> tuple[float, float]:
        count = self.high - self.low + 1
        return ((self.likely[0] - self.low) / count, (self.likely[1] + 1 - self.low) / count) if self.likely else (0, 1)

    def at(self, u: float) -> int:
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def quantile(self, value: Any) -> float:
        return float((value - self.low + 0.5) / (self.high - self.low + 1))  # the middle of those that give `value`

    def edges(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


class Choice(Section):
    """One of the listed values, all alike: `Choice(16, 32)` or, as others write it, `Choice([16, 32])`."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...]
    likely: ClassVar[None] = None

    def __init__(self, *values: Value | Sequence[Value], **fields: Any) -> None:
        if len(values) == 1 and isinstance(values[0], list | tuple):
            values = tuple(values[0])
        super().__init__(**({"values": values} if values else fields))

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.values) < 2 or len(set(map(repr, self.values))) < len(self.values):
            raise ConfigError(f"Choice{self.values!r}: list at least two different values.")
        return self

    def likely_quantiles(self) -> tuple[float, float]:
        return (0.0, 1.0)  # its values have no order

    def at(self, u: float) -> Value:
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def quantile(self, value: Any) -> float:
        return (self.position(value) + 0.5) / len(self.values)

    def edges(self) -> tuple[Value, ...]:
        return self.values

    def contains(self, value: Any) -> bool:
        return any(same(value, listed) for listed in self.values)

    def position(self, value: Any) -> int:
        """Which of the listed values it is, counted from 0; 1 is not True."""
        return next(i for i, listed in enumerate(self.values) if same(value, listed))


Plain = Uniform | LogUniform | IntUniform | Choice
Case = tuple[Value, Annotated[Plain, Field(discriminator="kind")]]


class PerChoice(Section):
    """A domain of its own for each value of another searched name, which is a Choice: each optimizer has its rates.

    While the other name has a value without a case the value is not searched, as under a `When`.

    Attributes:
        name: the other searched name.
        cases: one of its values, and the domain there.

    Example:
        >>> PerChoice("optim.name", {"sgd": Uniform(0, 0.95)}).edges()
        (0.0, 0.95)
    """

    kind: Literal["per_choice"] = "per_choice"
    name: str
    cases: tuple[Case, ...]

    def __init__(self, name: str, cases: Any = (), **kind: Any) -> None:
        pairs = tuple(cases.items()) if isinstance(cases, Mapping) else cases
        super().__init__(**{"name": name, "cases": pairs, **kind})

    @model_validator(mode="after")
    def _some(self) -> Self:
        values = [repr(value) for value, _ in self.cases]
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"PerChoice({self.name!r}, ...): give each value one domain, and at least one value.")
        return self

    def case(self, value: Any) -> Plain | None:
        """The domain while the other name has this value; None if it is not searched then."""
        return next((domain for listed, domain in self.cases if same(value, listed)), None)

    def edges(self) -> tuple[Value, ...]:
        """The edges of every case."""
        return tuple(value for _, domain in self.cases for value in domain.edges())

    def contains(self, value: Any) -> bool:
        """Whether `value` may be proposed in any case."""
        return any(domain.contains(value) for _, domain in self.cases)


Domain = Annotated[Plain | PerChoice, Field(discriminator="kind")]


def same(one: Value, other: Value) -> bool:
    """Whether two values are the same to a Choice; 1 is not True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _check_order(domain: _Interval | IntUniform) -> None:
    if not domain.low < domain.high:
        raise ConfigError(
            f"{type(domain).__name__}(low={domain.low:g}, high={domain.high:g}): the range is upside down or empty. "
            "low must be below high."
        )
    if domain.likely and not domain.low <= domain.likely[0] < domain.likely[1] <= domain.high:
        low, high = domain.likely
        raise ConfigError(
            f"{type(domain).__name__}(low={domain.low:g}, high={domain.high:g}, likely=({low:g}, {high:g})): likely is "
            "a part of the range, its lower end first. Give two different values within the range, or leave it out."
        )
