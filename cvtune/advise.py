"""The command `advise`: rules of thumb, each tested on the user's own images. `cli.py` puts it on the line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cvtune import study
from cvtune.building import built
from cvtune.durable import write_whole
from cvtune.errors import ConfigError, config_error
from cvtune.looking import screen_console
from cvtune.rule import Rule
from cvtune.signals import exit_code

if TYPE_CHECKING:
    from cvtune.verdict import Verdict

ADVICE = Path("advice")
PAGE, PLOT = "verdicts.md", "verdicts.png"


def advise(
    data: Annotated[
        str, typer.Argument(help="Images: what `cvtune run` takes, or python:MODULE:FUNCTION.", metavar="DATA")
    ],
    rules: Annotated[
        list[Path],
        typer.Argument(help="Files of workflows/advice/, or of your own: one rule each.", metavar="RULE.py..."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set a value of the recipe, or units, seeds, relevant."),
    ] = None,
    storage: Annotated[Path, typer.Option("--storage", help="Folder that holds the experiments.")] = ADVICE,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder for decoded images, on a local disk.", envvar="CVTUNE_CACHE"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, train nothing.")] = False,
) -> None:
    """Test rules of thumb on your images: supported, contradicted, no relevant effect, or undecided.

    Every arm of a rule is tuned first, then all are trained on fresh splits. All rules tested in one storage folder are
    judged together. The same command again goes on where it was left.
    """
    values = dict(study.parse_assignment(text) for text in settings or [])
    chosen = [changed(load(path), {**values, "data.source": data}) for path in rules]
    console = screen_console()
    if dry_run:
        for rule in chosen:
            console.print(f"{rule.name}: {_costs(rule)}", highlight=False, soft_wrap=True)
        return
    from cvtune import experiment  # late: Ray
    from cvtune.engine import Interrupted

    roots = tuple(dict.fromkeys([*(str(path.resolve().parent) for path in rules), os.getcwd()]))  # noqa: PTH109
    run = experiment.through_ray(cache, roots, _say)
    for rule in chosen:
        try:
            images = "" if rule.untestable else experiment.images_of(rule.study.data, cache)
            experiment.advise(rule, storage, run, _say, images)
        except Interrupted as interrupted:
            console.print("interrupted; the same command again takes it up where it was.")
            raise typer.Exit(exit_code(interrupted.number)) from None
    found = experiment.verdicts(storage)
    _show(found, console)
    console.print(_written(found, storage), highlight=False, soft_wrap=True)


def load(path: Path) -> Rule:
    """The rule that a file's function `rule()` gives.

    Raises:
        ConfigError: there is no such file or function, or the rule cannot be built.
    """
    return built(path, "rule", Rule, "a file of advice")


def changed(rule: Rule, settings: Mapping[str, Any]) -> Rule:
    """The rule with values of its study, or `units`, `seeds` and `relevant`, set to others.

    Raises:
        ConfigError: a value is unknown or out of range, or an arm sets it.
    """
    own = {name: value for name, value in settings.items() if name in ("units", "seeds", "relevant")}
    for name in settings:
        arms = [arm for arm, values in rule.arms.items() if name in values]
        if arms:
            raise ConfigError(f"{name} cannot be set: it is what the arms of rule {rule.name!r} differ in ({arms[0]}).")
    rest = {name: value for name, value in settings.items() if name not in own}
    try:
        return Rule.model_validate({**rule.model_dump(), **own, "study": rule.study.set(rest)})
    except ValidationError as error:
        raise config_error(error) from None


def _costs(rule: Rule) -> str:
    """What an experiment trains, in words."""
    from cvtune.verdict import UNTESTABLE  # late: SciPy, which is half of `cvtune --help`

    if rule.untestable is not None:
        return f"{UNTESTABLE}: {rule.untestable}"
    trials, epochs = len(rule.tuned) * rule.study.budget.trials, rule.study.recipe.max_epochs
    compared = len(rule.arms) * rule.units * rule.seeds
    return (
        f"{len(rule.arms)} arms; {trials} trials to tune them and {compared} to compare them ({rule.units} units of "
        f"{rule.seeds} seeds), of at most {epochs} epochs each."
    )


def _written(verdicts: list[Verdict], storage: Path) -> str:
    """Write what was shown as a page and, where any rule was tested, a plot; says where they are."""
    from cvtune.report.forest import draw_verdicts  # late: matplotlib
    from cvtune.verdict import UNTESTABLE, page

    write_whole(storage / PAGE, page(verdicts))
    told = f"{storage / PAGE}: the same with each arm's scores."
    if any(verdict.claim != UNTESTABLE for verdict in verdicts):
        write_whole(storage / PLOT, draw_verdicts(verdicts))
        told += f" {storage / PLOT}: the plot."
    return told


def _say(line: str) -> None:
    print(line, flush=True)


def _show(verdicts: list[Verdict], console: Console) -> None:
    table = Table("rule", "verdict", box=None, padding=(0, 2, 1, 0))
    for verdict in verdicts:
        table.add_row(verdict.evidence.rule, f"{verdict.evidence.says}\n{verdict.sentence()}")
    console.print(table)
