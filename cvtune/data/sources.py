"""Where images come from: one reader per format, found by what the source looks like."""

from __future__ import annotations

from pathlib import Path

from cvtune.data import digits, folder, npz, user
from cvtune.data.listing import Listing
from cvtune.study import Source


def read_source(source: Source) -> Listing:
    """Lists the labelled images of a source. Image files are not opened.

    Raises:
        DataError: the source is missing or its images and labels cannot be used as they are.
        ConfigError: the source names user code that cannot be imported.
    """
    if source.source == "digits":
        return digits.read(source)
    if source.source.startswith("python:"):
        return user.read(source)
    path = Path(source.source).expanduser().absolute()
    return npz.read(path, source) if path.suffix == ".npz" else folder.read(path, source)
