"""What `peer.py` hurts: a search over digits by plain Ray Tune, as its user guide has it, and nothing of cvtune.

    RAY_ADDRESS=... python -m tests.soak.peer_study asha FOLDER

A function that is told of its checkpoint, saves one with each report, and is taken up by `Tuner.restore`. Every epoch
is seeded by trial and number, so that one that is trained again comes out the same, to the last bit. FOLDER gets
`trained.jsonl`, a line for each epoch that a process has trained, and `result.json` once all is done.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

# name -> trials, epochs of each, how many at once
SHAPES = {"fifo": (2, 60, 2), "nodes": (4, 100, 2), "asha": (12, 3, 1), "pbt": (4, 6, 4)}


def train(config: dict[str, Any]) -> None:
    """One trial."""
    from sklearn.datasets import load_digits

    def note(**line: Any) -> None:
        where = {"pid": os.getpid(), "ip": ray.util.get_node_ip_address()}
        whole = {"number": config["number"], "t": time.time(), "lr": config["lr"], **where, **line}
        with Path(config["log"]).open("a") as file:
            file.write(json.dumps(whole) + "\n")

    torch.set_num_threads(1)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(config["number"])
    model = torch.nn.Sequential(
        torch.nn.Upsample(16), torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1568, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    first = 1
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
        for group in optimizer.param_groups:
            group["lr"] = config["lr"]  # population-based training has changed it
    note(began=first)
    for epoch in range(first, config["epochs"] + 1):
        torch.manual_seed(1000 * config["number"] + epoch)
        for batch in torch.randperm(1200)[:600].split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            score = float((model(images[1200:]).argmax(1) == labels[1200:]).float().mean())
        time.sleep(config["pace"])  # an epoch of the study that cvtune is hurt at takes half a second
        note(epoch=epoch, score=score)
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, Path(folder) / "state.pt")
            tune.report({"score": score, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(folder))


def tuner(name: str, folder: Path) -> tune.Tuner:
    """A new search, or the one in `folder` restored."""
    path = folder / name
    if tune.Tuner.can_restore(str(path)):
        return tune.Tuner.restore(str(path), trainable=train, resume_unfinished=True, resume_errored=True)
    trials, epochs, at_once = SHAPES[name]
    scheduler: TrialScheduler = FIFOScheduler()
    if name == "asha":
        scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=1, reduction_factor=3)
    if name == "pbt":
        scheduler = PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=1,
            hyperparam_mutations={"lr": tune.loguniform(3e-4, 3e-2)},
        )
    return tune.Tuner(
        tune.with_resources(train, {"cpu": 2 / max(2, at_once)}),  # a population trains at the same time
        param_space={
            "number": tune.grid_search(list(range(trials))),
            "lr": tune.loguniform(3e-4, 3e-2),
            "epochs": epochs,
            "log": str(folder / "trained.jsonl"),
            "pace": float(os.environ.get("PEER_PACE", "0.4")),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(random_state=0, max_concurrent=at_once),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=int(os.environ.get("PEER_RETRIES", "0"))),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=int(os.environ.get("PEER_KEEP", "0")) or None),
        ),
    )


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    ray.init(address=os.environ["RAY_ADDRESS"])
    found = []
    for result in tuner(name, folder).fit():
        told = result.metrics_dataframe
        found.append(
            {
                "number": None if result.config is None else result.config["number"],
                "epochs": [] if told is None else [int(epoch) for epoch in told["epoch"]],
                "error": result.error and str(result.error).strip().splitlines()[-1][:300],
            }
        )
    (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
