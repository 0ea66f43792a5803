"""Weights for fine-tuning: where they are looked for, what of a file is taken, their digests, and that they help."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file
from torch import Tensor

from cvtune import checkpoint
from cvtune.data import Dataset, open_dataset
from cvtune.errors import ConfigError
from cvtune.evaluation import score_test
from cvtune.fetch import fetch
from cvtune.models import Network, build_model
from cvtune.models.weights import digests, published
from cvtune.preflight import prepare
from cvtune.recipe import Recipe
from cvtune.sections import Source
from cvtune.space import Choice, space
from cvtune.study import Study
from cvtune.study_folder import check_unchanged
from cvtune.train import Run, train

ROOT = Path(__file__).resolve().parents[1]
BASE = Recipe().replace({"data.image_size": 16, "model.width": 8, "augment.flip": "none"})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the Hugging Face hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, repository: str, revision: str, state: dict[str, Tensor]) -> str:
    """Put a file of weights where the hub's library keeps it; its SHA-256."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    for name in ("blobs", "refs", "snapshots/" + revision):
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / "blobs" / "new")
    digest = hashlib.sha256((folder / "blobs" / "new").read_bytes()).hexdigest()
    (folder / "blobs" / "new").rename(folder / "blobs" / digest)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision / "model.safetensors").symlink_to(Path("..", "..", "blobs", digest))
    return digest


def saved(network: Network, file: Path) -> Path:
    save_file({key: value.clone().contiguous() for key, value in network.module.state_dict().items()}, file)
    return file


def network(name: str, num_classes: int, task: Any = "classify", **values: object) -> Network:
    changed = {"model.name": name, **{key.replace("__", "."): value for key, value in values.items()}}
    return build_model(BASE.replace(changed), num_classes, 64, task)


# --- timm's and smp's own


def test_default_weights_of_timm_are_looked_for_in_the_cache_of_the_hub(hub: Path) -> None:
    with pytest.raises(ConfigError, match=r"not in .*models--timm--resnet18\S* \(\$HF_HOME.*cvtune fetch.*https://"):
        network("timm:resnet18", 3, model__pretrained="default")
    state = network("timm:resnet18", 1000).module.state_dict()
    weights = published("timm:resnet18")
    assert weights.hub is not None
    digest = put(hub, weights.hub[0], "a" * 40, state)
    assert weights.is_whole() and weights.sha256() == digest
    loaded = network("timm:resnet18", 3, model__pretrained="default")
    assert torch.equal(loaded.module.get_parameter("layer4.0.conv1.weight"), state["layer4.0.conv1.weight"])
    assert next(loaded.head.parameters()).shape == (3, 512)
    assert digests([("timm:resnet18", "default"), ("timm:resnet18", None)]) == {"timm:resnet18": digest}


def test_default_weights_of_smp_are_those_of_the_encoder(hub: Path) -> None:
    with pytest.raises(ConfigError, match=r"models--smp-hub--resnet18\.imagenet"):
        network("smp:unet/resnet18", 3, "segment", model__pretrained="default")
    encoder: Any = network("smp:unet/resnet18", 3, "segment").module.encoder
    state = encoder.state_dict()
    weights = published("smp:fpn/resnet18")
    assert weights.hub is not None and weights.hub[2] is not None
    put(hub, weights.hub[0], weights.hub[2], state)
    for name in ("smp:unet/resnet18", "smp:fpn/resnet18"):
        loaded = network(name, 3, "segment", model__pretrained="default")
        assert torch.equal(loaded.module.get_parameter("encoder.conv1.weight"), state["conv1.weight"])


def test_a_file_of_the_hub_that_is_broken_is_noticed(hub: Path) -> None:
    weights = published("timm:resnet18")
    assert weights.hub is not None
    put(hub, weights.hub[0], "a" * 40, {"w": torch.zeros(3)})
    weights.file.resolve().write_bytes(b"half")
    assert not weights.is_whole()


def test_what_cannot_be_fetched_from_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(repository: str, file: str, revision: str | None, force_download: bool) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    study = Study(recipe=BASE.replace({"model.name": "timm:resnet18", "model.pretrained": "default"}))
    with pytest.raises(ConfigError, match=r"no route.*by hand and give its path as model\.pretrained"):
        list(fetch(study))


@pytest.mark.parametrize("name", ["small_unet", "timm:vit_tiny_patch16_18", "smp:unet/tu-resnet18"])
def test_architectures_without_published_weights(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no weights are published|is not known"):
        published(name)


# --- files


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "fcn_resnet50"])
def test_second_heads_in_published_files_are_left_out(name: str, tmp_path: Path) -> None:
    from torchvision.models import get_model

    task = "segment" if "fcn" in name else "classify"
    options = {"aux_loss": True, "weights_backbone": None} if task == "segment" else {"init_weights": True}
    plain = get_model(name, weights=None, **options)
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    loaded = network(f"torchvision:{name}", 3, task, model__pretrained=str(tmp_path / "w.pth"))
    key, value = next(iter(plain.state_dict().items()))
    assert torch.equal(loaded.module.state_dict()[key], value)


def test_small_unet_takes_the_encoder_of_small_resnet(tmp_path: Path) -> None:
    source = network("small_resnet", 5)
    file = saved(source, tmp_path / "w.safetensors")
    loaded = network("small_unet", 2, "segment", model__pretrained=str(file))
    assert torch.equal(
        loaded.module.get_parameter("stages.3.conv2.weight"), source.module.get_parameter("stages.3.conv2.weight")
    )
    other = network("small_unet", 7, "segment", model__pretrained=str(saved(loaded, tmp_path / "u.safetensors")))
    assert torch.equal(
        other.module.get_parameter("decoder.0.conv1.weight"), loaded.module.get_parameter("decoder.0.conv1.weight")
    )
    with pytest.raises(ConfigError, match=r"does not fit small_unet: .*another shape: stages\.0.*model\.width"):
        network("small_unet", 2, "segment", model__width=4, model__pretrained=str(file))


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    file = saved(network("small_resnet", 5), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit torchvision:resnet18: .*missing: conv1\.weight.*model\.name"):
        network("torchvision:resnet18", 5, model__pretrained=str(file))


@pytest.mark.parametrize("averaged", [False, True])
def test_the_folder_of_a_trials_checkpoint_is_a_file_of_weights(tmp_path: Path, averaged: bool) -> None:
    trained, mean = network("small_resnet", 5), network("small_resnet", 5)
    state = {"model": trained.module.state_dict(), "stepper": {"ema": mean.module.state_dict() if averaged else None}}
    checkpoint.save(tmp_path / "3", state, {})
    expected = (mean if averaged else trained).module.get_parameter("stem.0.weight")
    loaded = network("small_resnet", 5, model__pretrained=str(tmp_path / "3"))
    assert torch.equal(loaded.module.get_parameter("stem.0.weight"), expected)
    (tmp_path / "3" / checkpoint.TENSORS).write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"cannot be read: checkpoint .* differs from what was written"):
        network("small_resnet", 5, model__pretrained=str(tmp_path / "3"))


# --- provenance


def test_digests_of_all_weights_that_a_study_may_use_are_noted_and_compared_on_resume(tmp_path: Path) -> None:
    recipe = BASE.replace({"model.width": 4})
    file = saved(build_model(recipe, 10, 16), tmp_path / "w.safetensors")
    searched = space({"model.pretrained": Choice(None, str(file))})
    study = Study(data=Source(source="digits"), recipe=recipe, space=searched)
    prepared = prepare(study, tmp_path / "cache")
    assert prepared.weights == {str(file): hashlib.sha256(file.read_bytes()).hexdigest()}
    before = {"data_fingerprint": prepared.fingerprint, "code": {}}
    for noted, changed in ((prepared.weights, False), ({str(file): "0" * 64}, True), (None, False)):
        (tmp_path / "study.json").write_text(json.dumps({"provenance": before | ({"weights": noted} if noted else {})}))
        if changed:
            with pytest.raises(ConfigError, match="the pretrained weights changed since it began"):
                check_unchanged(tmp_path, prepared)
        else:
            check_unchanged(tmp_path, prepared)
    file.unlink()
    with pytest.raises(ConfigError, match="is not a file"):
        prepare(study, tmp_path / "cache")


# --- what it is for


@pytest.mark.long
def test_fine_tuning_beats_training_from_scratch_at_equal_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretrained on the digits 0 to 6, then two images each of 7 to 9: over 12 seeds the lower end of the 95 % interval
    of the mean difference (t distribution, paired by seed) is above 0, also where scratch has the better of two rates.
    """
    monkeypatch.syspath_prepend(ROOT / "workflows")

    def images(function: str) -> Dataset:
        source = Source(source=f"python:transfer_data:{function}")
        return open_dataset(source, BASE.data, tmp_path / "cache", None, 1)

    run = Run(BASE.replace({"max_epochs": 12, "optim.lr": 1e-2, "augment.strength": 0.5}), images("many"))
    assert list(train(run))[-1].val_accuracy > 0.9
    file = saved(run.model, tmp_path / "w.safetensors")
    few = images("few")
    assert len(few.train.labels) == 6

    def accuracies(**values: object) -> npt.NDArray[np.float64]:
        """Of the last epoch of 12 seeds, on test images."""
        changed = {name.replace("__", "."): value for name, value in values.items()}
        found = []
        for seed in range(12):
            tuned = Run(BASE.replace({"max_epochs": 6, "data.batch_size": 3, "seed": seed, **changed}), few)
            list(train(tuned))
            found.append(score_test(tuned)[0]["test_accuracy"])
        return np.array(found)

    tuned = accuracies(model__pretrained=str(file), optim__lr=5e-2, optim__backbone_lr_scale=0.1)
    scratch = max((accuracies(optim__lr=1e-2), accuracies(optim__lr=5e-2)), key=np.mean)
    gains = tuned - scratch
    margin = scipy.stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    print(f"scratch {scratch.mean():.3f}, tuned {tuned.mean():.3f}, gain {gains.mean():.3f} +- {margin:.3f}")
    assert gains.mean() - margin > 0, gains


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_batches_of_two_and_a_last_one_of_a_single_image_train_with_every_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "workflows")
    data = open_dataset(Source(source="python:transfer_data:few"), BASE.data, tmp_path, None, 1)
    five = dataclasses.replace(
        data.train, images=[data.train.images[i] for i in range(5)], labels=data.train.labels[:5]
    )
    values = {"model.norm": norm, "data.batch_size": 2, "max_epochs": 2, "data.image_size": 8}
    tuned = Run(BASE.replace(values), dataclasses.replace(data, train=five))
    assert tuned.images == 5
    epochs = list(train(tuned))
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert all(np.isfinite(epoch.train_loss) and np.isfinite(epoch.val_loss) for epoch in epochs)
