"""`data.classes`: classes of the data that are renamed, merged or ignored, before anything else looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cvtune.data.listing import IGNORE, Labelled, Tags, Task
from cvtune.errors import ConfigError, did_you_mean
from cvtune.sections import Source


def relabel(
    source: Source, classes: Sequence[str], parts: Mapping[str, Labelled], task: Task
) -> tuple[list[str], dict[str, Labelled], tuple[int, ...]]:
    """New class names in the order of their first one, the parts in terms of them, and the lookup of masks.

    Images of an ignored class are left out ("classify"), its column is ("multilabel"), its pixels become IGNORE
    ("segment"). Where classes are merged, an image shows the new one if it shows any of them.

    Raises:
        ConfigError: `data.classes` names a class that there is not.
    """
    mapping = source.classes or {}
    for name in mapping:
        if name not in classes:
            raise ConfigError(f"data.classes: {name!r} is no class of {source.source}. {did_you_mean(name, classes)}")
    renamed = [mapping.get(name, name) for name in classes]
    names = list(dict.fromkeys(name for name in renamed if name is not None))
    targets = np.array([-1 if name is None else names.index(name) for name in renamed], np.int64)
    lookup = tuple(np.where(targets < 0, IGNORE, targets).tolist()) if task == "segment" else ()
    if mapping:
        parts = {name: _mapped(part, targets, len(names), task) for name, part in parts.items()}
    return names, dict(parts), lookup


def _mapped(part: Labelled, targets: npt.NDArray[np.int64], count: int, task: Task) -> Labelled:
    if part.tags is None:
        labels = targets[part.labels]
        return part._replace(labels=labels).take(np.flatnonzero(labels >= 0))
    if task == "multilabel":
        return part._replace(tags=_any_of(part.tags, targets, count))
    summed = np.stack([part.tags[:, targets == new].sum(axis=1) for new in range(count)], axis=1)
    if task == "segment":
        return part._replace(tags=summed)
    rest = summed.sum(axis=1)  # of a soft label, what says nothing about the ignored classes
    kept = part._replace(tags=(summed / np.maximum(rest, 0.5)[:, None]).astype(np.float32))
    return kept.take(np.flatnonzero(rest >= 0.5))


def _any_of(tags: Tags, targets: npt.NDArray[np.int64], count: int) -> Tags:
    """Float32 (N, count): the largest of the merged columns; NaN if one is unknown and none is certain."""
    merged = np.empty((len(tags), count), np.float32)
    for new in range(count):
        columns = tags[:, targets == new]
        known = np.nan_to_num(columns).max(axis=1)
        merged[:, new] = np.where(np.isnan(columns).any(axis=1) & (known < 1), np.nan, known)
    return merged
