"""The digits of scikit-learn: 1797 scans of 8 x 8 pixels in 10 classes, embedded, for tests and first steps."""

from __future__ import annotations

import numpy as np

from cvtune.data.assemble import make_listing
from cvtune.data.listing import Labelled, Listing
from cvtune.sections import Source


def read(source: Source) -> Listing:
    """The digits as uint8 (8, 8) images, split by the source's shares."""
    from sklearn.datasets import load_digits  # takes seconds to import, and only this source needs it

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything = Labelled(images, digits.target.astype(np.int64))
    return make_listing(source, [str(digit) for digit in range(10)], {"train": everything}, whole=True)
