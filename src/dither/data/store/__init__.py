"""Record stores: written once, mapped by every run."""

from __future__ import annotations

from dither.data.store.dataset import StoreDataset
from dither.data.store.manifest import Manifest, PublicInput, read_manifest
from dither.data.store.split import Split
from dither.data.store.store import RecordStore

__all__ = ["Manifest", "PublicInput", "RecordStore", "Split", "StoreDataset", "read_manifest"]
