"""Collections of latents: from whole folders, tars and tables of images, and back."""

from .buckets import Buckets
from .collection import Collection
from .decode import decode_dataset
from .reader import LatentDataset, LatentStream
from .run import Engine, choose_settings, encode_dataset
from .settings import Scale, Settings
from .verify import verify_dataset

__all__ = [
    "Buckets",
    "Collection",
    "Engine",
    "LatentDataset",
    "LatentStream",
    "Scale",
    "Settings",
    "choose_settings",
    "decode_dataset",
    "encode_dataset",
    "verify_dataset",
]
