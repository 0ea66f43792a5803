"""The images of a study: found, checked, decoded once per node, and read by all trials without a copy.

Batches are made by `cvtune.data.loader`, the only module here that needs torch.
"""

from cvtune.data.cache import cache_folder
from cvtune.data.dataset import Dataset, Images, Part, open_dataset, open_store
from cvtune.data.listing import Labels, Listing, Pixels
from cvtune.data.sources import read_source

__all__ = [
    "Dataset",
    "Images",
    "Labels",
    "Listing",
    "Part",
    "Pixels",
    "cache_folder",
    "open_dataset",
    "open_store",
    "read_source",
]
