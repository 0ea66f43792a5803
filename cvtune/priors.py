"""Ready-made pieces of a Space: what is known before a search about which values are worth trying together.

Study(space=space({"augment.strength": Uniform(0, 1), **optimizer_space().domains}))
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence

from cvtune.errors import ConfigError, did_you_mean
from cvtune.space import Choice, Domain, LogUniform, PerChoice, Plain, Space, Uniform, space

# Peak rates at the reference batch of 64 images. Each range begins a factor of ten or more below what its authors or
# torch propose for large networks, and ends where a small one still learns best. Measured: small_resnet of width 8 on
# digits, 5 epochs; validation accuracies 0.992, 0.989 and 0.992 at the best rates 0.3 (SGD), 0.03 (Adam) and 0.3
# (AdaGrad), at most 0.9 at 0.01, 0.001 and 0.003. AdamW differs from Adam in its decay only; RMSprop was not measured.
RATES: Mapping[str, LogUniform] = types.MappingProxyType(
    {
        "sgd": LogUniform(1e-3, 0.5),  # proposed: 0.1 for batches of 256 (He et al. 2016, Goyal et al. 2017)
        "adam": LogUniform(1e-4, 3e-2),  # 1e-3 (Kingma & Ba 2015)
        "adamw": LogUniform(1e-4, 3e-2),  # 1e-3 (Loshchilov & Hutter 2019)
        "adagrad": LogUniform(1e-3, 0.3),  # 1e-2, torch's default; its rate falls by itself (Duchi et al. 2011)
        "rmsprop": LogUniform(1e-4, 1e-2),  # 1e-3 (Hinton 2012, lecture 6e); torch's 1e-2 is the upper end
    }
)

# Of Adam and AdamW it is beta1, which hardly anybody moves from 0.9 and which is not searched; AdaGrad has none.
MOMENTA: Mapping[str, Uniform] = types.MappingProxyType({"sgd": Uniform(0.5, 0.99), "rmsprop": Uniform(0.0, 0.95)})


def optimizer_space(names: Sequence[str] = tuple(RATES)) -> Space:
    """The optimizer, and a learning rate and momentum from its own ranges.

    Args:
        names: at least two of sgd, adam, adamw, adagrad and rmsprop.

    Raises:
        ConfigError: fewer than two, or an unknown one.
    """
    for name in names:
        if name not in RATES:
            raise ConfigError(f"optimizer_space: {name!r} is no optimizer. {did_you_mean(name, RATES)}")
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"optimizer_space({tuple(names)!r}): name two different ones or more. For a single one set optim.name in "
            "the recipe and search optim.lr over cvtune.priors.RATES[NAME]."
        )
    domains: dict[str, Domain] = {
        "optim.name": Choice(*names),
        "optim.lr": PerChoice("optim.name", {name: RATES[name] for name in names}),
    }
    momenta = {name: MOMENTA[name] for name in names if name in MOMENTA}
    if momenta:
        domains["optim.momentum"] = PerChoice("optim.name", momenta)
    return space(domains)


def resolution_space(sizes: Sequence[int], lr: LogUniform = RATES["adamw"]) -> Space:
    """The resolution; and the higher it is, the stronger the augmentation and regularization and the lower the rate.

    A prior, not a law: the ranges of neighboring sizes overlap.

    - Strengths. A larger image shows more detail to memorize, so the same network overfits it sooner: EfficientNetV2
      (Tan & Le 2021, section 4) raises RandAugment from 5 to 15 and dropout from 0.1 to 0.3 on the way from
      128 to 300 px, and loses accuracy where it does not. Here the smallest size searches the lower three quarters of a
      strength, the largest one the upper three quarters.
    - Rate. At a higher resolution fewer images fit a step and each has more pixels to average over; with the memory for
      one batch, images per step fall with the square of the side. Adam's rate goes by the square root of the batch
      (Malladi et al. 2022), so the range of a size is divided by its side over the smallest one's.

    Args:
        sizes: two or more values of `data.image_size` in px; each has a decoded store of its own.
        lr: the rates at the smallest size.

    Raises:
        ConfigError: fewer than two sizes.
    """
    rising = sorted(set(sizes))
    if len(rising) < 2:
        raise ConfigError(f"resolution_space({tuple(sizes)!r}): give two sizes or more, such as 64, 96 and 128.")
    strengths: dict[int, Plain] = {}
    rates: dict[int, Plain] = {}
    for position, size in enumerate(rising):
        low = 0.25 * position / (len(rising) - 1)
        strengths[size] = Uniform(low, low + 0.75)
        rates[size] = LogUniform(lr.low * rising[0] / size, lr.high * rising[0] / size)
    return space(
        {
            "data.image_size": Choice(*rising),
            "augment.strength": PerChoice("data.image_size", strengths),
            "regularize.strength": PerChoice("data.image_size", strengths),
            "optim.lr": PerChoice("data.image_size", rates),
        }
    )
