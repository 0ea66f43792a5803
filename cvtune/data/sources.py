"""Where images come from: one reader per format, found by what the source looks like."""

from __future__ import annotations

from pathlib import Path

from cvtune.data import archives, digits, folder, manifest, npz, segmentation, torchvision, user
from cvtune.data.listing import Listing
from cvtune.errors import DataError
from cvtune.sections import MANIFESTS, TORCHVISION, Source


def shows_masks(where: str) -> bool:
    """Whether a data source that is a folder or a file has masks, from names and columns: no image is opened.

    Of shards the first is looked at. What cannot be read has none here: whoever reads it will say what is wrong.
    """
    path = Path(where).expanduser().absolute()
    try:
        if path.suffix.lower() == ".npz":
            return npz.has_masks(path)
        if archives.claims(path):
            return archives.has_masks(path, Source(source=where))
        if path.suffix.lower() in MANIFESTS:
            return manifest.has_masks(path)
        return segmentation.looks_like_one(path, Source(source=where))
    except DataError:
        return False


def read_source(source: Source, cache: Path | None = None, workers: int = 1) -> Listing:
    """Lists the labelled images of a source. Image files are not opened; masks are, unless `cache` remembers them.

    Raises:
        DataError: the source is missing or its images and labels cannot be used as they are.
        ConfigError: the source names user code that cannot be imported, or a published set that there is not.
    """
    if source.source == "digits":
        return digits.read(source)
    if source.source.startswith("python:"):
        return user.read(source, workers)
    if source.source.startswith(TORCHVISION):
        return torchvision.read(source)
    path = Path(source.source).expanduser().absolute()
    if path.suffix.lower() == ".npz":
        return npz.read(path, source, workers)
    if archives.claims(path):
        return archives.read(path, source, cache, workers)
    if path.suffix.lower() in MANIFESTS:
        return manifest.read(path, source, cache, workers)
    if segmentation.looks_like_one(path, source):
        return segmentation.read(path, source, cache, workers)
    return folder.read(path, source)
