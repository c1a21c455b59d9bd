"""Statistics that a LeRobotDataset keeps of each feature, for LeRobot's normalisers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Num, UInt8

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def of_rows(rows: Num[np.ndarray, "n k"]) -> dict[str, Any]:
    """Return least, greatest, mean, standard deviation and quantiles of each column, and the number of rows."""
    wide = rows.astype(np.float64)
    found = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    found |= {_name(q): np.quantile(wide, q, axis=0) for q in QUANTILES}
    return {**{name: values.tolist() for name, values in found.items()}, "count": [len(rows)]}


def histogram(frames: UInt8[np.ndarray, "n H W 3"]) -> Int[np.ndarray, "3 256"]:
    """Return how often each channel has each value."""
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_pictures(counts: Int[np.ndarray, "3 256"], frames: int) -> dict[str, Any]:
    """Return the same of each channel, of values in [0, 1], as (3, 1, 1); `frames` is their number."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    there = [np.flatnonzero(channel) for channel in counts]
    found: dict[str, Sequence[float] | np.ndarray] = {
        "min": [values[i[0]] for i in there],
        "max": [values[i[-1]] for i in there],
        "mean": mean,
        "std": np.sqrt(np.maximum(shares @ values**2 - mean**2, 0)),
    }
    found |= {_name(q): [values[np.searchsorted(c.cumsum(), q)] for c in shares] for q in QUANTILES}
    return {**{name: [[[float(x)]] for x in each] for name, each in found.items()}, "count": [frames]}


def _name(quantile: float) -> str:
    return f"q{round(100 * quantile):02d}"
