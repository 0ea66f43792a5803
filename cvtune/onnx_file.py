"""The best model as ONNX, for where there is no torch: normalization inside, checked against torch on real images.

The input `images` is what `loader.evaluation_batch` gives, (N, S, S, C) as the store keeps them, N of any size; the
output `logits` is what the model gives, (N, K) or (N, K, S, S).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cvtune.data.listing import Pixels
from cvtune.durable import write_whole
from cvtune.errors import ConfigError, told
from cvtune.trained import Model

TOLERANCE = 1e-3  # largest difference of a logit, by the largest logit (at least 1)
INSTALL = "pip install 'cvtune[onnx]'"


def export(model: Model, path: Path, images: Sequence[Pixels]) -> float:
    """Write a model on the CPU to `path`, whole or not at all, unless onnxruntime makes something else of `images`.

    Args:
        images: as `Model.kept` gives them, at least one.

    Returns:
        The largest difference between the logits of onnxruntime and torch, by the largest logit (at least 1).

    Raises:
        ConfigError: the packages are missing, the network cannot be exported, or the two differ by more than TOLERANCE.
    """
    try:
        import onnx  # noqa: F401 - what torch needs to export
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--onnx needs the package {error.name!r}: {INSTALL}.") from None
    name = model.about.recipe.model.name
    batch = model.batch(images)
    try:
        content = _exported(_WithNormalization(model), batch)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        made = np.concatenate([session.run(None, {"images": batch[i : i + 1].numpy()})[0] for i in range(len(batch))])
        together = session.run(None, {"images": batch.numpy()})[0]
    except Exception as error:  # whatever torch, onnx or onnxruntime may raise
        reason = told(error).splitlines()[0]
        raise ConfigError(
            f"model.name = {name!r} cannot be written as ONNX: {reason}. Use model.safetensors with torch instead."
        ) from error
    wanted = model.logits(images).numpy()
    largest = max(1.0, float(np.abs(wanted).max()))
    apart = max(float(np.abs(some - wanted).max()) for some in (made, together)) / largest
    if not apart <= TOLERANCE:
        raise ConfigError(
            f"model.name = {name!r} as ONNX differs from torch by {apart:.2g} of the largest logit on {len(images)} "
            f"images (at most {TOLERANCE:g}). Nothing was written; use model.safetensors with torch instead."
        )
    write_whole(path, content)
    return apart


class _WithNormalization(nn.Module):
    """Images as they are kept in, logits out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, self._normalized = model.module, model.normalized

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self._normalized(images))
        return logits


def _exported(module: nn.Module, batch: Tensor) -> bytes:
    pair = batch[:2] if len(batch) > 1 else batch.repeat(2, *[1] * (batch.ndim - 1))  # of one image N would be fixed
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (pair,),
            buffer,  # type: ignore[arg-type]  # it takes whatever can be written to
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return buffer.getvalue()
