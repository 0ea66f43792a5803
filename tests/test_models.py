"""Every architecture of the table: plain keys, noise that acts only in train mode, freezing, weights from files."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cvtune.errors import ConfigError
from cvtune.models import Network, Noise, build_model, check_model, drop_rows
from cvtune.models.norms import group_norm
from cvtune.recipe import Recipe, Regularize
from cvtune.regularize import resolve

QUIET = resolve(Recipe().replace({"regularize.strength": None}))
NOISY = {"dropout": 0.5, "spatial_dropout": 0.5, "drop_path": 0.5}
BLOCKS = {  # architecture: residual branches that take stochastic depth, places of spatial dropout
    "small_resnet": (4, 3),
    "torchvision:resnet18": (8, 3),
    "torchvision:mobilenet_v3_small": (6, 3),
    "torchvision:efficientnet_b0": (9, 4),
    "torchvision:convnext_tiny": (18, 3),
    "torchvision:vit_b_16": (12, 0),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**values: object) -> Recipe:
    return QUIET.replace({name.replace("__", "."): value for name, value in values.items()})


def noise(**knobs: float) -> Regularize:
    return resolve(Recipe().replace({"regularize.strength": None})).regularize.model_copy(update=knobs)


def small(**values: object) -> Network:
    torch.manual_seed(0)
    return build_model(recipe(model__width=4, **values), 3, 16)


def images(side: int, count: int = 4) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def outputs_of(module: nn.Module, inside: nn.Module, x: Tensor) -> Tensor:
    """What `inside` returns, hooks included, during one pass of `module`."""
    seen: list[Tensor] = []
    handle = inside.register_forward_hook(lambda m, i, output: seen.append(output.detach().clone()))
    with torch.no_grad():
        module(x)
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module", params=BLOCKS)
def built(request: pytest.FixtureRequest) -> tuple[str, Network]:
    torch.manual_seed(0)
    name: str = request.param
    return name, build_model(recipe(model__name=name), 5, 32)


# --- every architecture -----------------------------------------------------------------------------------------


def test_keys_are_those_of_the_plain_architecture(built: tuple[str, Network]) -> None:
    name, network = built
    if not name.startswith("torchvision:"):
        pytest.skip("the plain architecture is ours")
    from torchvision.models import get_model

    size = {"image_size": 32} if "vit" in name else {}
    with torch.device("meta"):
        plain = get_model(name.removeprefix("torchvision:"), num_classes=5, **size)
    shapes = {key: value.shape for key, value in network.module.state_dict().items()}
    assert shapes == {key: value.shape for key, value in plain.state_dict().items()}


def test_noise_acts_in_train_mode_only_and_can_be_turned_off_again(built: tuple[str, Network]) -> None:
    name, network = built
    branches, places = BLOCKS[name]
    assert (len(network._branches), len(network._channels)) == (branches, places)
    assert network._dropout
    x = images(32)

    def passes(training: bool) -> bool:
        """Whether two passes in a row agree; batch norms stay in eval mode, so that only noise can differ."""
        network.module.train(training)
        for m in network.module.modules():
            if isinstance(m, nn.BatchNorm2d) and not m._forward_hooks:
                m.eval()
        with torch.no_grad():
            return torch.equal(network.module(x), network.module(x))

    nn.init.normal_(network.head.weight, std=0.1)  # type: ignore[arg-type]  # a ViT's head starts at 0
    for knob in NOISY:
        network.set_noise(noise(**{knob: 0.5}))
        acts = not (knob == "spatial_dropout" and not places)
        assert passes(training=True) != acts, knob
        assert passes(training=False), knob
    network.set_noise(noise())
    assert passes(training=True)


def test_check_model_accepts_it_and_keeps_its_mode(built: tuple[str, Network]) -> None:
    _, network = built
    network.module.train()
    check_model(network, 5, 32)
    assert network.module.training
    with pytest.raises(ConfigError, match=r"\(2, 5\) for 2 images.*\(2, 7\)"):
        check_model(network, 7, 32)


def test_the_head_is_the_last_layer(built: tuple[str, Network]) -> None:
    _, network = built
    assert isinstance(network.head, nn.Linear)
    assert network.head.out_features == 5
    assert list(network.module.modules())[-1] is network.head


# --- noise ------------------------------------------------------------------------------------------------------


def test_spatial_dropout_zeroes_whole_channels_and_keeps_the_mean() -> None:
    network = small()
    network.set_noise(noise(spatial_dropout=0.5))
    stages: Any = network.module.stages
    stage, x = stages[0], images(16, 64)
    network.module.train()
    clean = stage.relu.register_forward_hook(lambda m, i, o: torch.ones_like(o))
    maps = outputs_of(network.module, stage, x)
    clean.remove()
    assert set(maps.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(maps.amax((2, 3)), maps.amin((2, 3)))
    assert 0.3 < (maps == 0).float().mean() < 0.7
    network.module.eval()
    assert (outputs_of(network.module, stage, x) > 0).any(dim=(2, 3)).float().mean() > 0.9


def test_no_spatial_dropout_after_the_last_stage() -> None:
    network = small()
    network.set_noise(noise(spatial_dropout=0.9))
    stages: Any = network.module.stages
    hooked = [[h for h in stage._forward_hooks.values() if isinstance(h, Noise)] for stage in stages]
    assert [len(hooks) for hooks in hooked] == [1, 1, 1, 0]


def test_drop_path_rises_linearly_with_depth(built: tuple[str, Network]) -> None:
    name, network = built
    network.set_noise(noise(drop_path=0.4))
    n = BLOCKS[name][0]
    for i, block in enumerate(network._branches):
        assert [site.p for site in block] == pytest.approx([0.4 * i / (n - 1)] * len(block))
    network.set_noise(noise())


def test_drop_path_skips_a_branch_for_some_samples_and_scales_the_others() -> None:
    torch.manual_seed(0)
    rows = drop_rows(torch.ones(1000, 2, 3, 3), 0.25)
    assert torch.equal(rows.amax((1, 2, 3)), rows.amin((1, 2, 3)))
    assert rows.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert rows.mean().item() == pytest.approx(1.0, abs=0.1)
    assert drop_rows(torch.ones(6, 5, 4), 0.5).shape == (6, 5, 4)


def test_dropout_comes_before_the_head_or_into_the_place_the_architecture_has() -> None:
    network = small()
    network.set_noise(noise(dropout=0.5))
    seen: list[Tensor] = []
    network.head.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    network.module.train()(images(16, 64))
    assert 0.35 < (seen[0] == 0).float().mean() < 0.65


def test_one_dropout_only_where_the_architecture_has_its_own() -> None:
    network = build_model(recipe(model__name="torchvision:mobilenet_v3_small", regularize__dropout=0.35), 3, 32)
    assert [m.p for m in network.module.modules() if isinstance(m, nn.Dropout)] == [0.35]
    assert not network.head._forward_pre_hooks


def test_torchvisions_own_stochastic_depth_does_not_act_beside_ours() -> None:
    network = build_model(recipe(model__name="torchvision:efficientnet_b0"), 3, 32)
    assert {m.p for m in network.module.modules() if type(m).__name__ == "StochasticDepth"} == {0.0}


def test_a_copy_and_a_pickle_work_on_their_own() -> None:
    network = small()
    network.set_noise(noise(dropout=0.5))
    for twin in (copy.deepcopy(network.module), pickle.loads(pickle.dumps(network.module))):
        assert torch.equal(twin.eval()(images(16)), network.module.eval()(images(16)))
        assert not torch.equal(twin.train()(images(16)), twin(images(16)))


def test_spatial_dropout_by_hand_is_refused_where_there_are_no_maps() -> None:
    vit = {"model__name": "torchvision:vit_b_16"}
    with pytest.raises(ConfigError, match=r"spatial_dropout = 0\.2.*ViT"):
        build_model(recipe(**vit, regularize__spatial_dropout=0.2), 3, 32)
    with pytest.raises(ConfigError, match=r"spatial_dropout = 0\.1.*ViT"):
        build_model(recipe(**vit, changes=((2, {"regularize.spatial_dropout": 0.1}),)), 3, 32)


# --- freezing ---------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_keeps_weights_and_statistics_through_train_mode() -> None:
    network = small()
    before = copy.deepcopy(network.module.state_dict())
    for frozen in (True, False):
        network.freeze_backbone(frozen)
        network.module.train()
        network.module(images(16)).sum().backward()
        grads = {name for name, p in network.module.named_parameters() if p.grad is not None}
        after = network.module.state_dict()
        assert (grads == {"head.weight", "head.bias"}) == frozen
        assert all(torch.equal(after[key], before[key]) for key in before if "running" in key) == frozen


def test_a_frozen_copy_keeps_its_own_norms_in_eval_mode() -> None:
    network = small()
    network.freeze_backbone(True)
    twin = copy.deepcopy(network.module).train()
    twin(images(16))
    assert not any(m.training for m in twin.modules() if isinstance(m, nn.BatchNorm2d))


def test_unfreezing_leaves_alone_what_the_architecture_froze() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)
    network = Network(module, module[2])
    network.freeze_backbone(True)
    network.freeze_backbone(False)
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]


# --- norm and size ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_resnet", "torchvision:resnet18", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize(("norm", "kind"), [("group", "GroupNorm"), ("none", "Affine"), ("batch", "BatchNorm2d")])
def test_norm_layers_are_replaced(name: str, norm: str, kind: str) -> None:
    network = build_model(recipe(model__name=name, model__norm=norm), 3, 32)
    kinds = {type(m).__name__ for m in network.module.modules()} & {"GroupNorm", "Affine", "BatchNorm2d"}
    assert kinds == {kind}
    network.module.train()(images(32)).sum().backward()
    check_model(network, 3, 32)


def test_without_norm_every_residual_branch_starts_at_zero() -> None:
    network = small(model__norm="none")
    block: Any = network.module.stages[1]  # type: ignore[index]
    assert not outputs_of(network.module, block.norm2, images(16)).any()
    assert outputs_of(network.module, block.shortcut, images(16)).any()


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 2), (17, 1), (24, 3), (64, 8), (72, 9), (512, 32)])
def test_group_norm_finds_groups_that_divide(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_16"])
def test_norm_is_refused_where_the_architecture_has_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.norm = 'group'.*only its own"):
        build_model(recipe(model__name=f"torchvision:{name}", model__norm="group"), 3, 32)


@pytest.mark.parametrize(("side", "last"), [(8, 2), (9, 2), (16, 2), (32, 4), (33, 3), (64, 4), (128, 8)])
def test_small_resnet_keeps_a_map_of_at_least_two_by_two(side: int, last: int) -> None:
    network = build_model(recipe(model__width=4), 3, side)
    assert outputs_of(network.module, network.module.stages, images(side, 2)).shape == (2, 32, last, last)  # type: ignore[arg-type]


def test_vit_says_the_nearest_valid_sizes() -> None:
    with pytest.raises(ConfigError, match=r"image_size = 100 .*16 px.*96 or 112"):
        build_model(recipe(model__name="torchvision:vit_b_16"), 3, 100)


def test_an_image_too_small_for_the_architecture_is_found_by_the_check(built: tuple[str, Network]) -> None:
    name, network = built
    if "convnext" in name:
        with pytest.raises(ConfigError, match=r"image_size = 16 .*It takes 32, 64, 96, .* px"):
            check_model(network, 5, 16)


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("torchvision:resnet81", "Did you mean 'torchvision:resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is not known. .*torchvision:alexnet.*torchvision:wide_resnet50_2"),
        ("torchvision:raft_large", "is not known"),
    ],
)
def test_unknown_names(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_model(recipe(model__name=name), 3, 32)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    source, path = small(), tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({key: value.clone() for key, value in source.module.state_dict().items()}, path)
    torch.manual_seed(1)
    same = build_model(recipe(model__width=4, model__pretrained=str(path)), 3, 16)
    assert all(torch.equal(v, same.module.state_dict()[k]) for k, v in source.module.state_dict().items())
    other = build_model(recipe(model__width=4, model__pretrained=str(path)), 7, 16)
    assert other.head.weight.shape == (7, 32)
    assert torch.equal(other.module.get_parameter("stem.0.weight"), source.module.get_parameter("stem.0.weight"))


def test_weights_of_torchvision_from_a_file(tmp_path: Path, built: tuple[str, Network]) -> None:
    name, network = built
    if "resnet18" not in name:
        return
    torch.save(network.module.state_dict(), tmp_path / "r.pth")
    loaded = build_model(recipe(model__name=name, model__pretrained=str(tmp_path / "r.pth")), 9, 64)
    assert torch.equal(loaded.module.get_parameter("layer4.1.conv2.weight"), network.module.layer4[1].conv2.weight)  # type: ignore[index,union-attr]


def test_vit_positions_are_interpolated_to_another_image_size(tmp_path: Path, built: tuple[str, Network]) -> None:
    name, network = built
    if "vit" not in name:
        return
    torch.save(network.module.state_dict(), tmp_path / "v.pth")
    loaded = build_model(recipe(model__name=name, model__pretrained=str(tmp_path / "v.pth")), 5, 48)
    positions = loaded.module.get_parameter("encoder.pos_embedding")
    assert positions.shape == (1, 10, 768)
    trained = network.module.get_parameter("encoder.pos_embedding")
    torch.testing.assert_close(positions[:, [0, 1, 3, 7, 9]], trained)  # class token and the four corners
    check_model(loaded, 5, 48)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("stem.0.weight"), "1 missing: stem.0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda s: s.update({"stem.0.weight": torch.zeros(2)}), "1 of another shape: stem.0.weight"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Any, complaint: str) -> None:
    state = dict(small().module.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=complaint):
        small(model__pretrained=str(tmp_path / "w.pth"))


def test_at_most_five_keys_are_named(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as error:
        small(model__pretrained=str(tmp_path / "w.pth"))
    assert "missing: " in str(error.value) and str(error.value).count(",") <= 7


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "list.pth", "absent.pth", "weights.h5"])
def test_files_that_hold_no_weights(tmp_path: Path, name: str) -> None:
    for broken in ("broken.pth", "broken.safetensors"):
        (tmp_path / broken).write_bytes(b"not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match=r"model\.pretrained = "):
        small(model__pretrained=str(tmp_path / name))


def test_default_weights_are_never_downloaded_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"resnet18-f37072fd\.pth is not in .*checkpoints.*`cvtune fetch.*https://"):
        build_model(recipe(model__name="torchvision:resnet18", model__pretrained="default"), 3, 32)
    assert not list(tmp_path.iterdir())


def test_default_weights_are_loaded_but_for_the_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = resnet18().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    network = build_model(recipe(model__name="torchvision:resnet18", model__pretrained="default"), 3, 32)
    assert torch.equal(network.module.get_parameter("conv1.weight"), published["conv1.weight"])
    assert network.head.weight.shape == (3, 512)


def test_small_resnet_has_no_default_weights() -> None:
    with pytest.raises(ConfigError, match="no weights are published"):
        small(model__pretrained="default")


# --- user code --------------------------------------------------------------------------------------------------


@pytest.fixture
def user_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(num_classes: int, recipe: Recipe) -> nn.Module:
        assert recipe.regularize.dropout is not None
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.Dropout(0.5), nn.Linear(4, num_classes))

    def fails(num_classes: int, recipe: Recipe) -> nn.Module:
        raise KeyError("depth")

    module = types.ModuleType("cvtune_test_models")
    vars(module).update(build=build, fails=fails, wrong=lambda num_classes, recipe: "resnet")
    monkeypatch.setitem(sys.modules, module.__name__, module)


def user(function: str, **values: object) -> Network:
    return build_model(Recipe().replace({"model.name": f"python:cvtune_test_models:{function}", **values}), 3, 16)


@pytest.mark.usefixtures("user_code")
def test_a_users_own_network() -> None:
    network = user("build")
    check_model(network, 3, 16)
    network.set_noise(noise(**NOISY))
    layers: Any = network.module
    assert network.head is layers[3] and layers[2].p == 0.5
    network.freeze_backbone(True)
    assert [p.requires_grad for p in network.module.parameters()] == [False, False, True, True]


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize(("function", "complaint"), [("fails", "KeyError: 'depth'"), ("wrong", "returned a str")])
def test_a_users_function_that_is_wrong(function: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"cvtune_test_models:{function}.*{complaint}"):
        user(function)


@pytest.mark.usefixtures("user_code")
def test_weights_for_a_users_own_network(tmp_path: Path) -> None:
    source = user("build")
    torch.save(source.module.state_dict(), tmp_path / "u.pth")
    loaded = user("build", **{"model.pretrained": str(tmp_path / "u.pth")})
    assert torch.equal(loaded.module.get_parameter("1.weight"), source.module.get_parameter("1.weight"))
