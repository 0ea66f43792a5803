"""Is a schedule found by population-based training better than the best constant recipe?

    uv run cvtune run workflows/pbt.py
    uv run cvtune run workflows/replay.py

The schedule of `studies/pbt` is trained again from scratch with five fresh seeds. Its opponent is the best constant
recipe of the same space, for whose search ASHA gets as many epochs as the whole population trained. Both are compared
on test images that neither search has seen. Another study of a population: `CVTUNE_REPLAY=studies/NAME`.

Time: three and a half minutes on two cores after `pbt.py` (measured: 211 s, 55 trials and 507 epochs). Expect: a tie.
Measured: schedule 0.9955, constant recipe 0.9910, default recipe 0.9932 on 266 test images, the difference of the first
two within -0.014 and 0.005 with 95 % confidence.
"""

import os
from pathlib import Path

from cvtune import ASHA, Budget, Confirm, Study
from cvtune.errors import ConfigError
from cvtune.history import load
from cvtune.schedule import read_recipe
from cvtune.study import read

POPULATION = Path(os.environ.get("CVTUNE_REPLAY", "studies/pbt"))


def study() -> Study:
    if not (POPULATION / "schedule.json").is_file():
        raise ConfigError(
            f"there is no {POPULATION / 'schedule.json'}. Run `cvtune run workflows/pbt.py` first, or name the folder "
            "of another study of a population in CVTUNE_REPLAY."
        )
    schedule = read_recipe(POPULATION / "schedule.json")
    older = read(POPULATION / "study.json")
    return Study(
        name=f"{older.name}-replay",
        data=older.data,
        recipe=older.recipe,
        space=older.space,
        scheduler=ASHA(),
        budget=Budget(trials=10_000, epochs=sum(len(trial.epochs) for trial in load(POPULATION).of("search"))),
        noise_seeds=0,  # the default recipe is confirmed anyway; here it would take epochs from the search
        confirm=Confirm(top=1, seeds=5),
        candidates={"schedule": schedule},
    )
