"""How many inputs are drawn: a few in the test suite, always the same; many by the command in cvtune/docs/faults.md."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=40, derandomize=True, **ALWAYS)
settings.register_profile("long", max_examples=8_000, **ALWAYS)
settings.load_profile("short")
