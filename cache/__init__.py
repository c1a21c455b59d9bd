"""The embedding store: rows of episodes in Zarr v3. Knows no encoder, no torch and no LIBERO."""

from cache.errors import StoreError
from cache.reader import Episodes, Store, Texts, open_store
from cache.stream import RowBatch, stream

__all__ = ["Episodes", "RowBatch", "Store", "StoreError", "Texts", "open_store", "stream"]
