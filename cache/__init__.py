"""The embedding store: rows of episodes in Zarr v3. Knows no encoder, no torch and no LIBERO."""

from cache.errors import StoreError
from cache.reader import Episodes, Store, Texts, open_store

__all__ = ["Episodes", "Store", "StoreError", "Texts", "open_store"]
