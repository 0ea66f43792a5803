"""Space: which values of a Recipe are searched, over which domain, under which condition."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError, model_validator

from cvtune.domains import Choice, Domain, IntUniform, LogUniform, PerChoice, Plain, Uniform
from cvtune.errors import ConfigError, config_error, did_you_mean
from cvtune.fields import Section
from cvtune.recipe import FIELDS, Recipe, Value

if TYPE_CHECKING:  # `cvtune --help` imports this, and would wait for NumPy as long as for everything else
    import numpy as np

__all__ = [
    "Choice",
    "Domain",
    "IntUniform",
    "LogUniform",
    "PerChoice",
    "Plain",
    "Space",
    "Uniform",
    "When",
    "space",
]

BUNDLE = "regularize.strength"
LIKELY = 0.75  # share of random points that are drawn where the best one probably lies
NOTHING: Mapping[str, Value] = types.MappingProxyType({})
KNOBS = tuple(name for name in FIELDS if name.startswith("regularize.") and name != BUNDLE)


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
        for name, domain in self.domains.items():
            if isinstance(domain, PerChoice):
                self._check_cases(name, domain)
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
        if "data.folds" in self.domains:
            raise ConfigError(
                "space: 'data.folds' cannot be searched, because all trials are compared on the same folds. Set it."
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

    def _check_cases(self, name: str, domain: PerChoice) -> None:
        parent = self.domains.get(domain.name)
        if parent is None:
            raise ConfigError(
                f"space: {name!r} has a domain per value of {domain.name!r}, which must then be searched. "
                f"{did_you_mean(domain.name, self.domains)}"
            )
        if not isinstance(parent, Choice) or name in self.conditions:
            fault = "which is no Choice" if name not in self.conditions else "and a condition beside it"
            raise ConfigError(
                f"space: {name!r} has a domain per value of {domain.name!r}, {fault}. A PerChoice goes by the values "
                "of a Choice, and where it is not searched a case is left out."
            )
        if wrong := [value for value, _ in domain.cases if not parent.contains(value)]:
            raise ConfigError(
                f"space: {name!r} has a domain for {domain.name} = {wrong[0]!r}, which it never takes. "
                f"Valid: {', '.join(map(repr, parent.values))}."
            )

    def parent(self, name: str) -> str | None:
        """The searched name whose value decides whether, or over which domain, `name` is searched."""
        domain = self.domains[name]
        if isinstance(domain, PerChoice):
            return domain.name
        return self.conditions[name].name if name in self.conditions else None

    def cases(self, name: str) -> list[tuple[tuple[Value, ...], Plain]]:
        """Each domain that a name may have, and at which values of its parent; no values: at any, or no parent."""
        domain = self.domains[name]
        if isinstance(domain, PerChoice):
            return [((value,), plain) for value, plain in domain.cases]
        return [(self.conditions[name].values if name in self.conditions else (), domain)]

    def plain(self) -> dict[str, Plain]:
        """The domains of a space in which none depends on another value, as schedulers of populations demand."""
        return {name: domain for name, domain in self.domains.items() if not isinstance(domain, PerChoice)}

    def order(self) -> Iterator[str]:
        """The searched names, each after its parent."""
        done: set[str] = set()
        while len(done) < len(self.domains):
            ready = [
                name
                for name in self.domains
                if name not in done and (self.parent(name) is None or self.parent(name) in done)
            ]
            if not ready:
                loop = sorted(set(self.domains) - done)
                raise ConfigError(f"space: the conditions on {', '.join(loop)} ask for one another in a circle.")
            yield from ready
            done.update(ready)

    def domain(self, name: str, values: Mapping[str, Value]) -> Plain | None:
        """Over which domain a name is searched beside `values`, those of its parents; None: it is not searched."""
        parent = self.parent(name)
        if parent is not None and parent not in values:
            return None
        domain = self.domains[name]
        if isinstance(domain, PerChoice):
            return domain.case(values[domain.name])
        return domain if parent is None or values[parent] in self.conditions[name].values else None

    def holds(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether the name is searched beside `values`: its condition, if it has one, is met."""
        return self.domain(name, values) is not None

    def pick(
        self, quantiles: Mapping[str, float], given: Mapping[str, Value] = NOTHING, likely: bool = False
    ) -> dict[str, Value]:
        """The values at the given quantiles in [0, 1], names whose condition fails left out.

        Every sampler comes through here, so conditions are honored in one place. `given` values are kept as they are.
        With `likely` the quantiles are those of the likely part of each domain.
        """
        values: dict[str, Value] = {}
        for name in self.order():
            if domain := self.domain(name, values):
                low, high = domain.likely_quantiles() if likely else (0.0, 1.0)
                values[name] = given[name] if name in given else domain.at(low + quantiles[name] * (high - low))
        return values

    def completed(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """A partial point with what its values need: a parent without a value gets one that lets them be searched."""
        full = dict(given)
        for name in reversed(list(self.order())):
            parent = self.parent(name)
            if name not in full or parent is None or parent in full:
                continue
            for meets, domain in self.cases(name):
                fit = [value for value in meets if self.domains[parent].contains(value)]
                if fit and domain.contains(full[name]):
                    full[parent] = fit[0]
                    break
        return full

    def ends(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """Both ends of every domain and every choice, one at a time: in words, and with what conditions ask for."""
        for name in self.order():
            parent = self.parent(name)
            for meets, domain in self.cases(name):
                case = isinstance(self.domains[name], PerChoice)
                for value in domain.edges():
                    point = {name: value, **({parent: meets[0]} if parent and meets else {})}
                    words = f"{name} = {value!r}" + (f" at {parent} = {meets[0]!r}" if case else "")
                    yield words, self.completed(point)

    def pairs(self, names: Collection[str]) -> Iterator[tuple[str, dict[str, Value]]]:
        """The ends of every two of `names` that are searched without a condition, together; else like `ends`."""
        free = {name: domain for name, domain in self.plain().items() if name in names and not self.parent(name)}
        for (one, its), (other, theirs) in combinations(free.items(), 2):
            for x, y in product(its.edges(), theirs.edges()):
                yield f"{one} = {x!r} with {other} = {y!r}", {one: x, other: y}

    def restrict(self, recipe: Mapping[str, Value]) -> dict[str, Value] | None:
        """The searched values of a whole recipe; None if one of them lies outside its domain."""
        values: dict[str, Value] = {}
        for name in self.order():
            if domain := self.domain(name, values):
                if name not in recipe or not domain.contains(recipe[name]):
                    return None
                values[name] = recipe[name]
        return values

    def outside(self, recipe: Mapping[str, Value]) -> list[str]:
        """The searched names whose value in a whole recipe lies outside the domain that it has there."""
        values: dict[str, Value] = {}
        outside = []
        for name in self.order():
            if domain := self.domain(name, values):
                values[name] = recipe[name]
                outside += [] if domain.contains(recipe[name]) else [name]
        return outside

    def encode(self, values: Mapping[str, Value]) -> list[float]:
        """One quantile in [0, 1] for each searched name, in the order of `domains`; 0.5 for those without a value."""
        return [
            domain.quantile(values[name]) if name in values and (domain := self.domain(name, values)) else 0.5
            for name in self.domains
        ]

    def check_point(self, values: Mapping[str, Value]) -> None:
        """Refuse a point that no searcher could propose.

        Raises:
            ConfigError: a name that is not searched, or a value outside its domain.
        """
        for name, value in values.items():
            if name not in self.domains:
                raise ConfigError(f"point: {name!r} is not searched. {did_you_mean(name, self.domains)}")
            domain = self.domains[name]
            if isinstance(domain, PerChoice) and domain.name in values:
                domain = domain.case(values[domain.name]) or domain
            if not domain.contains(value):
                ends = [domain] if not isinstance(domain, PerChoice) else [case for _, case in domain.cases]
                shown = " and ".join(f"{type(d).__name__}({', '.join(map(repr, d.edges()))})" for d in ends)
                raise ConfigError(
                    f"point: {name} = {value!r} lies outside {shown}. Change the value, or widen the domain."
                )

    def sample(self, rng: np.random.Generator, given: Mapping[str, Value] = NOTHING) -> dict[str, Value]:
        """One random point, of a space that says what is likely more often from there.

        LIKELY of the points have every value from the likely part of its domain, the others are drawn from the whole
        space: a prior mixed with uniform draws finds the best point also where the prior is wrong, in at most
        1 / (1 - LIKELY) times the trials (as in PriorBand, Mallik et al. 2023). Draws for every name, so that a
        condition does not shift the other draws.
        """
        quantiles = {name: float(rng.random()) for name in self.domains}
        return self.pick(quantiles, given, likely=self.hints and rng.random() < LIKELY)

    @property
    def hints(self) -> bool:
        """Whether any domain says which part of it is likely."""
        return any(domain.likely for name in self.domains for _, domain in self.cases(name))

    def without(self, fixed: Mapping[str, Value]) -> Space:
        """This space with some names fixed at a value: they leave it, and so do names that are not searched there.

        A domain per value of a fixed name becomes the one domain that it has there.
        """
        kept: dict[str, Domain] = {}
        for name in self.order():
            parent = self.parent(name)
            domain = self.domain(name, fixed) if parent in fixed else self.domains[name]
            if name not in fixed and domain is not None and (parent is None or parent in fixed or parent in kept):
                kept[name] = domain
        return Space(
            domains={name: kept[name] for name in self.domains if name in kept},
            conditions={n: w for n, w in self.conditions.items() if n in kept and w.name in kept},
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
