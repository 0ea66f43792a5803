"""The digits of scikit-learn: 1797 scans of 8 x 8 pixels in 10 classes, embedded, for tests and first steps."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cvtune.data.assemble import make_listing
from cvtune.data.listing import Labelled, Listing
from cvtune.sections import Source

FILE = "datasets/data/digits.csv.gz"  # in scikit-learn: 64 pixels from 0 to 16 and the class, a row per image


def read(source: Source) -> Listing:
    """The digits as uint8 (8, 8) images, split by the source's shares."""
    package = find_spec("sklearn")  # to import it for the sake of one file would take 2 s
    assert package is not None and package.origin is not None
    rows = np.loadtxt(Path(package.origin).parent / FILE, delimiter=",")
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    everything = Labelled(list(images), rows[:, -1].astype(np.int64))
    return make_listing(source, [str(digit) for digit in range(10)], {"train": everything}, whole=True)
