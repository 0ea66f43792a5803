"""Where images come from: one reader per format, found by what the source looks like."""

from __future__ import annotations

from pathlib import Path

from cvtune.data import archives, digits, folder, manifest, npz, segmentation, torchvision, user
from cvtune.data.listing import Listing
from cvtune.sections import MANIFESTS, TORCHVISION, Source


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
        return archives.read(path, source)
    if path.suffix.lower() in MANIFESTS:
        return manifest.read(path, source, cache, workers)
    if segmentation.looks_like_one(path, source):
        return segmentation.read(path, source, cache, workers)
    return folder.read(path, source)
