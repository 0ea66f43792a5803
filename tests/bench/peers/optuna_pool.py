"""The same search with Optuna and a pool of processes, as a competent user would write it.

TPE and asynchronous successive halving (Optuna's pruner of that name), trials in two worker processes that live for
the whole search, each with the images decoded once. Same model, pipeline, space and epochs as textbook_ray.py.

    python optuna_pool.py DATA_DIR --samples 32 --max-epochs 9 --image-size 64 --seed 0 --out result.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from peers.plain import Images, Settings, load, train

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
_images: Images | None = None


def begin(data: Path, size: int) -> None:
    """Once per worker process."""
    global _images
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _images = load(data, size)


def study_of(journal: Path, seed: int) -> optuna.Study:
    """The search, as each process sees it: in a journal file that they share."""
    return optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    )


def work(journal: Path, trials: int, max_epochs: int, seed: int) -> None:
    """Run `trials` trials of the search in this process."""
    assert _images is not None
    images = _images

    def objective(trial: optuna.Trial) -> float:
        settings = Settings(
            lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-5, 1e-1, log=True),
            strength=trial.suggest_float("strength", 0, 1),
            dropout=trial.suggest_float("dropout", 0, 0.6),
            seed=seed,
        )
        accuracy = 0.0
        for epoch, accuracy in enumerate(train(images, settings, max_epochs), 1):
            trial.report(accuracy, epoch)
            if epoch < max_epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    study_of(journal, seed + os.getpid()).optimize(objective, n_trials=trials)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.log"
        study_of(journal, args.seed)
        shares = [len(range(i, args.samples, args.cpus)) for i in range(args.cpus)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.cpus, spawn, begin, (args.data, args.image_size)) as pool:
            jobs = [pool.submit(work, journal, share, args.max_epochs, args.seed) for share in shares if share]
            for job in jobs:
                job.result()
        trials = study_of(journal, args.seed).trials
    told = [trial.intermediate_values for trial in trials]
    result: dict[str, Any] = {
        "trials": len(trials),
        "epochs": sum(map(len, told)),
        "best_val_accuracy": max(max(values.values()) for values in told if values),
        "errors": sum(trial.state is optuna.trial.TrialState.FAIL for trial in trials),
    }
    args.out.write_text(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-epochs", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("optuna_result.json"))
    parser.add_argument("--storage", type=Path, help="not used: the search keeps nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
