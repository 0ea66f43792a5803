"""Where images come from: one reader per format, found by what the source looks like."""

from __future__ import annotations

from pathlib import Path

from cvtune.data import archives, digits, folder, npz, torchvision, user
from cvtune.data.listing import Listing
from cvtune.sections import TORCHVISION, Source


def read_source(source: Source) -> Listing:
    """Lists the labelled images of a source. Image files are not opened.

    Raises:
        DataError: the source is missing or its images and labels cannot be used as they are.
        ConfigError: the source names user code that cannot be imported, or a published set that there is not.
    """
    if source.source == "digits":
        return digits.read(source)
    if source.source.startswith("python:"):
        return user.read(source)
    if source.source.startswith(TORCHVISION):
        return torchvision.read(source)
    path = Path(source.source).expanduser().absolute()
    if archives.claims(path):
        return archives.read(path, source)
    return npz.read(path, source) if path.suffix == ".npz" else folder.read(path, source)
