"""The promise of strength, kept by every family alone, by all together and by TrivialAugment; and batch mixing."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cvtune.augment import FACTORS, FAMILIES, Pipeline, families_for, left_out
from cvtune.errors import ConfigError
from cvtune.kinds import ANY_IMAGE, PHOTO, Kind, Values
from cvtune.mixing import mix_batch
from cvtune.pixels import to_square
from cvtune.recipe import Augment

SIZE = 64
OFF = dict.fromkeys(FACTORS, 0.0)
CASES = {factor: Augment(**{**OFF, factor: 1.0}) for factor in FACTORS}
CASES |= {"all": Augment(), "both flips": Augment(flip="both"), "trivial": Augment(policy="trivial")}

every_case = pytest.mark.parametrize("case", CASES)


def pipeline(case: str, strength: float, size: int = SIZE, fit: str = "crop") -> Pipeline:
    return Pipeline(CASES[case].model_copy(update={"strength": strength}), size, fit)


def mean_change(photos: list[np.ndarray], pipe: Pipeline, samples: int = 288) -> float:
    """Mean absolute difference (of 255) to what evaluation sees, over photos and seeds."""
    plain = [to_square(photo, pipe.image_size, pipe.fit).astype(np.int16) for photo in photos]
    n = len(photos)
    return float(np.mean([np.abs(pipe(photos[i % n], i) - plain[i % n]).mean() for i in range(samples)]))


@every_case
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_strength_zero_is_what_evaluation_sees(case: str, fit: str, photos: list[np.ndarray]) -> None:
    white = np.full((50, 70, 3), 255, np.uint8)
    for seed, photo in enumerate([*photos, white]):
        np.testing.assert_array_equal(pipeline(case, 0.0, fit=fit)(photo, seed), to_square(photo, SIZE, fit))


def test_all_factors_zero_is_what_evaluation_sees(photos: list[np.ndarray]) -> None:
    pipe = Pipeline(Augment(strength=1.0, **OFF), SIZE)
    for seed, photo in enumerate(photos):
        np.testing.assert_array_equal(pipe(photo, seed), to_square(photo, SIZE, "crop"))


@every_case
def test_mean_change_never_falls_as_strength_rises(case: str, photos: list[np.ndarray]) -> None:
    change = [mean_change(photos, pipeline(case, tenth / 10)) for tenth in range(11)]
    assert change[0] == 0.0
    assert all(later > earlier for earlier, later in itertools.pairwise(change)), change


@every_case
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_low_strength_approaches_the_identity(case: str, fit: str, photos: list[np.ndarray]) -> None:
    change = [mean_change(photos, pipeline(case, s, fit=fit)) for s in (0.01, 0.02, 0.2)]
    assert change[0] <= change[1] < change[2] / 5


def test_the_warp_itself_approaches_the_center_crop(photos: list[np.ndarray]) -> None:
    """Without flips and whatever the probability: where the map is applied, it is nearly the identity."""
    pipe = Pipeline(Augment(strength=0.01, flip="none", **{**OFF, "geometry": 1.0}), SIZE)
    for photo in photos[:8]:
        plain = to_square(photo, SIZE, "crop").astype(np.int16)
        changes = [np.abs(pipe(photo, seed) - plain).mean() for seed in range(150)]
        assert 0 < max(changes) < 8


@every_case
@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (201, 67), (1, 5), (SIZE, SIZE)])
def test_any_image_becomes_a_uint8_square(case: str, shape: tuple[int, int]) -> None:
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8), 3, axis=2)
    before = gray.copy()
    for fit in ("crop", "squash"):
        for seed in range(20):
            out = pipeline(case, 1.0, size=24, fit=fit)(gray, seed)
            assert out.shape == (24, 24, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
    np.testing.assert_array_equal(gray, before)


@every_case
def test_the_seed_alone_decides(case: str, photos: list[np.ndarray]) -> None:
    pipe = pipeline(case, 0.7)
    first = [pipe(photos[0], seed) for seed in range(40)]
    backwards = [pipe(photos[0], seed) for seed in reversed(range(40))][::-1]
    thawed = pickle.loads(pickle.dumps(pipe))
    assert thawed == pipe and hash(thawed) == hash(pipe)
    np.testing.assert_array_equal(first, backwards)
    np.testing.assert_array_equal(first, [thawed(photos[0], seed) for seed in range(40)])
    numpy_seed: Any = np.int64(3)
    np.testing.assert_array_equal(first[3], pipe(photos[0], numpy_seed))
    assert len({out.tobytes() for out in first}) > 10


def test_a_used_pipeline_pickles_as_small_as_a_new_one(photos: list[np.ndarray]) -> None:
    pipe = pipeline("all", 0.5)
    fresh = pickle.dumps(pipe)
    pipe(photos[0], 0)
    assert pickle.dumps(pipe) == fresh


@pytest.mark.parametrize("policy", ["families", "trivial"])
@pytest.mark.parametrize(("flip", "axes"), [("none", set()), ("horizontal", {1}), ("both", {0, 1})])
def test_only_allowed_flips_happen_and_half_of_the_time(policy: str, flip: str, axes: set[int]) -> None:
    """One corner is red, one green, one blue: only a mirror image changes the sense in which they follow."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:32, :32, 0], image[:32, 32:, 1], image[32:, :32, 2] = 255, 255, 255
    pipe = Pipeline(Augment(strength=0.2, policy=policy, flip=flip, color=0, quality=0, occlusion=0), SIZE)
    outs = [pipe(image, seed).astype(np.int16) for seed in range(400)]
    candidates = {(): image, (0,): image[::-1], (1,): image[:, ::-1], (0, 1): image[::-1, ::-1]}
    seen = [min(candidates, key=lambda c: int(np.abs(out - candidates[c]).sum())) for out in outs]
    for axis in (0, 1):
        share = np.mean([axis in flipped for flipped in seen])
        assert 0.4 < share < 0.6 if axis in axes else share < 0.03  # turns and inversions may look like a flip


def test_geometry_without_flip_never_mirrors() -> None:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:32, :32, 0], image[:32, 32:, 1], image[32:, :32, 2] = 255, 255, 255
    pipe = Pipeline(Augment(strength=0.5, flip="none", **{**OFF, "geometry": 1.0}), SIZE)
    for seed in range(300):
        red, green, blue = (np.argwhere(pipe(image, seed)[..., channel] > 127).mean(axis=0) for channel in range(3))
        assert np.linalg.det([green - red, blue - red]) < 0


def test_effective_strength_is_capped() -> None:
    strong = Augment(strength=1.0, **{**OFF, "color": 1.0})
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    doubled = strong.model_copy(update={"color": 2.0})
    np.testing.assert_array_equal(Pipeline(strong, SIZE)(photo, 5), Pipeline(doubled, SIZE)(photo, 5))


USER_CODE = """
import albumentations as A
import numpy as np


def whole(strength, image_size):
    nested = A.OneOf([A.GaussNoise(p=1), A.Sequential([A.RandomBrightnessContrast(p=1)])], p=1)
    return A.Compose([A.RandomResizedCrop((image_size, image_size)), nested, A.Normalize(), A.ToFloat(max_value=1.0)])


SHARED = A.Compose([A.GaussNoise(p=1), A.Normalize(), A.ToFloat(max_value=1.0)])


def shared(strength, image_size):
    return SHARED


def single(strength, image_size):
    return A.RandomCrop(image_size, image_size)


def plain(strength, image_size):
    return lambda image: {"image": image[:image_size, :image_size]}


def to_eight_bits(strength, image_size):
    return lambda image: {"image": image[:image_size, :image_size].astype("uint8")}


def too_large(strength, image_size):
    return A.Resize(image_size + 1, image_size)


def normalized(strength, image_size):
    return A.Compose([A.Normalize(), A.Resize(image_size, image_size)])


def floats(strength, image_size):
    return A.Compose([A.Resize(image_size, image_size), A.Lambda(mask=lambda mask, **_: mask.astype("float32"))])


def nothing(strength, image_size):
    return lambda image: None


def no_transform(strength, image_size):
    return strength
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_augmentations.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_augmentations"


@pytest.mark.parametrize("function", ["whole", "single", "plain"])
def test_user_policy_is_seeded_and_normalization_left_to_the_device(
    function: str, user_module: str, photos: list[np.ndarray]
) -> None:
    pipe = Pipeline(Augment(policy=f"python:{user_module}:{function}"), SIZE)
    first = [pipe(photos[0], seed) for seed in range(10)]
    np.testing.assert_array_equal(first[::-1], [pipe(photos[0], seed) for seed in reversed(range(10))])
    assert first[0].shape == (SIZE, SIZE, 3) and first[0].dtype == np.uint8
    assert len({out.tobytes() for out in first}) == (1 if function == "plain" else 10)


def test_pipelines_that_get_the_same_user_transform_do_not_disturb_each_other(user_module: str) -> None:
    photo = np.zeros((SIZE, SIZE, 3), np.uint8)
    one, two = (Pipeline(Augment(strength=s, policy=f"python:{user_module}:shared"), SIZE) for s in (0.1, 0.2))
    alone = one(photo, 1)
    two(photo, 2)
    np.testing.assert_array_equal(one(photo, 1), alone)


@pytest.mark.parametrize(
    ("function", "came_out"),
    [
        ("too_large", r"uint8 \(65, 64, 3\)"),
        ("normalized", r"float32 \(64, 64, 3\)"),
        ("nothing", "NoneType"),
        ("no_transform", "returned float"),
    ],
)
def test_bad_user_output_is_told(function: str, came_out: str, user_module: str, photos: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=came_out):
        Pipeline(Augment(policy=f"python:{user_module}:{function}"), SIZE)(photos[0], 0)


def batch(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample i is filled with the value i and has label i."""
    return torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 3, 16, 20).clone(), torch.arange(n)


def test_no_mixing_returns_the_batch_itself() -> None:
    x, y = batch()
    mixed, y_a, y_b, lam, *_ = mix_batch(x, y, 0.0, 0.0, torch.Generator())
    assert mixed is x and y_a is y and y_b is y and lam == 1.0
    assert mix_batch(x[:1], y[:1], 1.0, 1.0, torch.Generator())[3] == 1.0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0), (0.001, 10.0)])
def test_mixing_keeps_labels_shares_and_mean(mixup: float, cutmix: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x, y = batch()
        mixed, y_a, y_b, lam, *_ = mix_batch(x, y, mixup, cutmix, generator)
        assert 0 <= lam <= 1
        torch.testing.assert_close(x, batch()[0])
        assert torch.equal(y_a, y) and torch.equal(y_b.sort().values, y) and not (y_a == y_b).any()
        expected = lam * y_a + (1 - lam) * y_b  # the value of a sample is its label
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed.mean(), x.mean())


def test_cutmix_pastes_one_rectangle_and_mixup_blends() -> None:
    x, y = batch()
    pasted, *_ = mix_batch(x, y, 0.0, 1.0, torch.Generator().manual_seed(1))
    changed = (pasted != x).any(dim=1)
    assert (changed == changed[0]).all() and changed.any()
    rows, columns = changed[0].any(dim=1), changed[0].any(dim=0)
    assert torch.equal(changed[0], rows[:, None] & columns[None, :])
    blended, _, _, lam, *_ = mix_batch(x, y, 1.0, 0.0, torch.Generator().manual_seed(1))
    assert 0 < lam < 1 and all(len(sample.unique()) == 1 for sample in blended)


def test_mixup_and_cutmix_take_turns_and_the_seed_decides() -> None:
    def kinds(seed: int) -> list[bool]:
        generator = torch.Generator().manual_seed(seed)
        mixed = [mix_batch(*batch(), 1.0, 1.0, generator)[0] for _ in range(200)]
        return [bool((m == m.round()).all()) for m in mixed]

    assert 70 < sum(kinds(0)) < 130
    assert kinds(0) == kinds(0) != kinds(1)


# --- images that are no photos ----------------------------------------------------------------------------------------

KINDS = [Kind("uint16", 1), Kind("uint16", 4), Kind("float32", 1), Kind("float32", 7), Kind("uint8", 2)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def of_kind(photos: list[np.ndarray], kind: Kind) -> tuple[list[np.ndarray], Values]:
    """The photos as images of a kind, each channel with a span of its own, floats below zero too; and those spans."""
    scale = {"uint8": 1.0, "uint16": 200.0, "float32": 0.013}[kind.dtype] * np.linspace(0.5, 1, kind.channels)
    offset = -1.0 if kind.dtype == "float32" else 0.0
    made = [(p[..., np.arange(kind.channels) % 3] * scale + offset).astype(kind.dtype) for p in photos]
    return made, Values(kind, (offset,) * kind.channels, tuple((255 * scale + offset).tolist()))


def change_of_span(images: list[np.ndarray], pipe: Pipeline, samples: int = 72) -> float:
    """Mean absolute difference to what evaluation sees, of the span of each channel."""
    span, n = np.subtract(pipe.values.high, pipe.values.low), len(images)
    plain = [to_square(image, pipe.image_size, pipe.fit).astype(float) for image in images]
    return float(np.mean([(np.abs(pipe(images[i % n], i) - plain[i % n]) / span).mean() for i in range(samples)]))


def pipe_of(case: str, strength: float, values: Values, size: int = 32) -> Pipeline:
    return Pipeline(CASES[case].model_copy(update={"strength": strength}), size, "crop", values)


@each_kind
@every_case
def test_strength_zero_is_the_identity_of_any_kind(case: str, kind: Kind, photos: list[np.ndarray]) -> None:
    images, values = of_kind(photos[:6], kind)
    for seed, image in enumerate(images):
        expected = to_square(image, 32, "crop")
        assert expected.dtype == kind.dtype and expected.shape == (32, 32, kind.channels)
        np.testing.assert_array_equal(pipe_of(case, 0.0, values)(image, seed), expected)


@each_kind
@pytest.mark.parametrize("case", [*FACTORS, "trivial"])
def test_strength_rises_for_any_kind(case: str, kind: Kind, photos: list[np.ndarray]) -> None:
    images, values = of_kind(photos, kind)
    change = [change_of_span(images, pipe_of(case, s, values)) for s in (0.0, 0.05, 0.25, 0.5, 1.0)]
    assert change[0] == 0.0 < change[1] < change[2] / 3, change
    assert all(later > earlier for earlier, later in itertools.pairwise(change)), change


@each_kind
@every_case
def test_the_kind_stays_and_the_seed_decides(case: str, kind: Kind, photos: list[np.ndarray]) -> None:
    images, values = of_kind(photos[:2], kind)
    mask = (photos[0][..., 0] > 99).astype(np.uint8)
    pipe = pipe_of(case, 0.8, values, 24)
    thawed = pickle.loads(pickle.dumps(pipe))
    assert thawed == pipe
    outs = []
    for seed in range(20):
        image = images[0].copy()
        out, moved = pipe.with_mask(image, mask, seed)
        assert (out.dtype, out.shape, out.flags.c_contiguous) == (kind.dtype, (24, 24, kind.channels), True)
        np.testing.assert_array_equal(out, thawed(image, seed))
        np.testing.assert_array_equal(image, images[0])
        assert set(np.unique(moved)) <= {0, 1} and np.isfinite(out).all()
        outs.append(out.tobytes())
    assert len(set(outs)) > 3


@each_kind
def test_geometry_moves_all_channels_alike_and_as_it_moves_photos(kind: Kind, photos: list[np.ndarray]) -> None:
    image = np.repeat(photos[0][..., :1], kind.channels, axis=2)
    image = image.astype(kind.dtype) * np.dtype(kind.dtype).type(1 if kind.dtype == "uint8" else 128)
    values = Values(kind, (0.0,) * kind.channels, (float(image.max()),) * kind.channels)
    photo = np.repeat(photos[0][..., :1], 3, axis=2)
    for seed in range(12):
        out = pipe_of("geometry", 0.9, values)(image, seed)
        assert (out == out[..., :1]).all()
        same = Pipeline(CASES["geometry"].model_copy(update={"strength": 0.9}), 32)(photo, seed)[..., 0]
        assert np.abs(out[..., 0].astype(float) / (1 if kind.dtype == "uint8" else 128) - same).max() <= 4  # rounding


def test_values_stay_within_what_their_type_holds(photos: list[np.ndarray]) -> None:
    bright = np.full((40, 40, 4), 65535, np.uint16)
    values = Values(Kind("uint16", 4), (0.0,) * 4, (65535.0,) * 4)
    for seed in range(40):
        out = pipe_of("all", 1.0, values)(bright, seed)  # noise and brightness would wrap around to black
        dark = np.mean(out < 2000)
        assert dark < 0.4
    assert pipe_of("color", 1.0, values)(bright, 3).max() == 65535


def test_what_falls_away_is_told() -> None:
    assert left_out(Augment(), PHOTO) == left_out(Augment(policy="trivial"), PHOTO) == ""
    told = left_out(Augment(), Kind("uint16", 4))
    assert told.startswith("The images are uint16 with 4 channels. Left out") and "hue" in told and "no JPEG" in told
    assert "hue" not in left_out(Augment(color=0), Kind("uint16", 4))
    assert left_out(Augment(color=0, quality=0), Kind("float32", 1)) == ""
    assert "equalize" in left_out(Augment(policy="trivial"), Kind("float32", 1))
    for family in FAMILIES:  # whatever a row says that it takes, it takes
        assert family.takes == ANY_IMAGE or PHOTO in family.takes
    assert [family.factor for family in families_for(Kind("float32", 9))] == list(FACTORS)


def test_a_users_policy_gets_the_kind_and_keeps_it(user_module: str, photos: list[np.ndarray]) -> None:
    images, values = of_kind(photos[:1], Kind("float32", 7))
    out = Pipeline(Augment(policy=f"python:{user_module}:plain"), 32, "crop", values)(images[0], 0)
    assert (out.dtype, out.shape) == (np.float32, (32, 32, 7))
    with pytest.raises(ConfigError, match=r"must give uint16 \(32, 32, 1\)"):
        images, values = of_kind(photos[:1], Kind("uint16", 1))
        Pipeline(Augment(policy=f"python:{user_module}:to_eight_bits"), 32, "crop", values)(images[0], 0)


# --- masks ----------------------------------------------------------------------------------------------------------

LOW, HIGH = 60, 190  # what a pixel of each class looks like: the image tells its own mask


def labelled(height: int = 150, width: int = 210) -> tuple[np.ndarray, np.ndarray]:
    """An image that no mirror or turn maps to itself, and its mask, uint8 (H, W) of 0 and 1."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 3, height // 3), height // 4, 1, -1)
    cv2.rectangle(mask, (width // 2, height // 2), (width - height // 6, height - height // 8), 1, -1)
    return np.where(mask[..., None], np.uint8(HIGH), np.uint8(LOW)).repeat(3, axis=2), mask


def inside(mask: np.ndarray, margin: int) -> np.ndarray:
    """Where a pixel and all its neighbors have one class."""
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return np.asarray(cv2.erode(mask, kernel) == cv2.dilate(mask, kernel))


def told_by(image: np.ndarray, mask: np.ndarray) -> float | None:
    """Share of the pixels away from edges whose class the image tells right; None where nothing can be told apart."""
    gray, sure = image.astype(float).mean(axis=2), inside(mask, 3)
    low, high = (gray[sure & (mask == k)] for k in (0, 1))
    if not len(low) or not len(high) or abs(np.median(high) - np.median(low)) < 20:
        return None
    bright = (gray > (np.median(high) + np.median(low)) / 2) == (np.median(high) > np.median(low))
    return float((bright == (mask == 1))[sure].mean())


SEEN = {name: augment for name, augment in CASES.items() if name not in ("all", "occlusion", "both flips")}
SEEN["all but occlusion, both flips"] = Augment(occlusion=0.0, flip="both")


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("case", SEEN)
def test_a_mask_stays_on_its_image(case: str, fit: str) -> None:
    image, mask = labelled()
    pipe = Pipeline(SEEN[case].model_copy(update={"strength": 0.8}), SIZE, fit)
    shares = []
    for seed in range(150):
        out, moved = pipe.with_mask(image, mask, seed)
        assert moved.shape == (SIZE, SIZE) and moved.dtype == np.uint8 and set(np.unique(moved)) <= {0, 1}
        shares.append(told_by(out, moved))
    told = [share for share in shares if share is not None]
    assert len(told) > 100 and min(told) > 0.97 and np.mean(told) > 0.995


def test_a_mask_that_is_not_moved_is_noticed() -> None:
    """The test above would see it."""
    image, mask = labelled()
    pipe = Pipeline(CASES["geometry"].model_copy(update={"strength": 0.8}), SIZE)
    still = to_square(mask, SIZE, "crop", nearest=True)
    shares = [told_by(pipe(image, seed), still) for seed in range(50)]
    assert np.mean([share for share in shares if share is not None]) < 0.9


@pytest.mark.parametrize("shape", [(150, 210), (40, 56), (SIZE, SIZE)])
def test_masks_are_moved_by_no_fraction_of_a_pixel(shape: tuple[int, int]) -> None:
    """The nearest pixel by its center: the area and its center are those of the interpolated image, on average."""
    image, mask = labelled(*shape)
    y, x = np.mgrid[:SIZE, :SIZE]
    for strength in (0.0, 0.8):
        pipe, gaps = Pipeline(CASES["geometry"].model_copy(update={"strength": strength}), SIZE), []
        for seed in range(100 if strength else 1):
            out, moved = pipe.with_mask(image, mask, seed)
            share = (out[..., 0].astype(float) - LOW) / (HIGH - LOW)
            gaps.append([((share - moved) * axis).sum() / share.sum() for axis in (x - 31.5, y - 31.5)])
        assert np.abs(np.mean(gaps, axis=0)).max() < (0.08 if strength else 0.15), gaps


@every_case
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_strength_zero_leaves_image_and_mask_as_evaluation_sees_them(case: str, fit: str) -> None:
    image, mask = labelled()
    for seed in range(20):
        out, moved = pipeline(case, 0.0, fit=fit).with_mask(image, mask, seed)
        np.testing.assert_array_equal(out, to_square(image, SIZE, fit))
        np.testing.assert_array_equal(moved, to_square(mask, SIZE, fit, nearest=True))


@every_case
def test_the_image_does_not_depend_on_its_mask(case: str, photos: list[np.ndarray]) -> None:
    pipe = pipeline(case, 0.9)
    for seed, photo in enumerate(photos):
        mask = np.zeros(photo.shape[:2], np.uint8)
        np.testing.assert_array_equal(pipe.with_mask(photo, mask, seed)[0], pipe(photo, seed))


def test_only_geometry_changes_a_mask_and_erased_pixels_keep_their_labels() -> None:
    image, mask = labelled()
    for case in ("color", "quality", "occlusion"):
        for seed in range(30):
            moved = pipeline(case, 1.0).with_mask(image, mask, seed)[1]
            np.testing.assert_array_equal(moved, to_square(mask, SIZE, "crop", nearest=True))
    for seed in range(30):
        moved = pipeline("all", 1.0).with_mask(image, mask, seed)[1]
        np.testing.assert_array_equal(moved, pipeline("geometry", 1.0).with_mask(image, mask, seed)[1])


@pytest.mark.parametrize("case", ["geometry", "all", "trivial"])
def test_masks_keep_their_numbers_and_the_borders_are_reflected(case: str) -> None:
    """No class appears that was not there, the ignored one among them: nothing is interpolated, nothing filled in."""
    mask = np.full((90, 120), 7, np.uint8)
    mask[:, 60:] = 255
    mask.flags.writeable = False  # as in the store
    image = np.zeros((90, 120, 3), np.uint8)
    for seed in range(60):
        assert set(np.unique(pipeline(case, 1.0).with_mask(image, mask, seed)[1])) <= {7, 255}


@pytest.mark.parametrize("function", ["whole", "single"])
def test_a_users_transform_moves_masks_too(function: str, user_module: str) -> None:
    image, mask = labelled()
    pipe = Pipeline(Augment(policy=f"python:{user_module}:{function}"), SIZE)
    for seed in range(20):
        out, moved = pipe.with_mask(image, mask, seed)
        np.testing.assert_array_equal(out, pipe(image, seed))
        assert told_by(out, moved) in (None, pytest.approx(1.0, abs=0.15))  # it adds noise


@pytest.mark.parametrize(
    ("function", "says"),
    [("plain", "cannot move a mask.*albumentations"), ("too_large", r"uint8 \(65, 64, 3\)"), ("floats", "of the mask")],
)
def test_a_users_policy_that_cannot_move_masks_is_told(function: str, says: str, user_module: str) -> None:
    image, mask = labelled()
    with pytest.raises(ConfigError, match=says):
        Pipeline(Augment(policy=f"python:{user_module}:{function}"), SIZE).with_mask(image, mask, 0)


def test_mixing_masks() -> None:
    """CutMix pastes the mask with its image, weights too; mixup keeps both masks, each with its share."""
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 20).clone()
    masks, weights = torch.arange(8, dtype=torch.uint8).view(8, 1, 1).expand(8, 16, 20).clone(), torch.arange(8.0)
    mixed, y_a, y_b, share, w_a, w_b = mix_batch(x, masks, 0.0, 1.0, torch.Generator().manual_seed(1), weights)
    assert share == 1 and y_a is y_b and w_a is w_b and y_a.dtype == torch.uint8
    assert not torch.equal(mixed, x) and torch.equal(mixed[:, 0], y_a.float()) and torch.equal(w_a, y_a.float())
    assert torch.equal(masks[:, 0, 0], torch.arange(8, dtype=torch.uint8))  # not changed in place
    _, y_a, y_b, share, w_a, w_b = mix_batch(x, masks, 1.0, 0.0, torch.Generator().manual_seed(1), weights)
    assert 0 < share < 1 and torch.equal(y_a, masks) and torch.equal(w_a, weights)
    assert torch.equal(y_b[:, 0, 0].float(), w_b) and (w_b != w_a).all()


def test_mixing_tags() -> None:
    x, tags = torch.rand(8, 3, 16, 20), torch.rand(8, 5)
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        _, y_a, y_b, share, w_a, w_b = mix_batch(x, tags, mixup, cutmix, torch.Generator().manual_seed(1))
        assert y_a is tags and y_b.shape == tags.shape and 0 < share < 1 and w_a is w_b is None
