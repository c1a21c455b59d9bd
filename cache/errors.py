"""Errors of the embedding store. Each message names the store, the part and the remedy."""


class StoreError(Exception):
    """A store is missing, damaged, half built, or not the one that was asked for."""
