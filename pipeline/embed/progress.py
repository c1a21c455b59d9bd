"""How far a build is, and what it took."""

import threading
import time

from tqdm import tqdm

from cache.ledger import Receipt
from cache.plan import Plan


class Progress:
    """A bar that counts images, as they are encoded, and what the build took."""

    def __init__(self, plan: Plan, images_per_row: int) -> None:
        self._per_row = images_per_row
        self._started = time.perf_counter()
        self._images = 0
        self._resumed = 0
        self._under_way: dict[int, int] = {}  # unit -> images that are counted already
        self._finished: set[int] = set()
        self._lock = threading.Lock()
        self._bar = tqdm(total=plan.rows * images_per_row, desc="embeddings", unit="image", smoothing=0)

    def encoded(self, message: tuple[int, int]) -> None:
        """Count what a worker reports: (unit, images of it that are encoded). From any thread."""
        unit, images = message
        with self._lock:
            if unit not in self._finished:  # what is late must not count twice
                self._bar.update(images - self._under_way.get(unit, 0))
                self._under_way[unit] = images

    def finished(self, receipt: Receipt, resumed: bool) -> None:
        """Count one finished unit."""
        images = receipt.rows * self._per_row
        with self._lock:
            self._finished.add(receipt.unit)
            if resumed:
                self._resumed += images
                self._bar.initial += images  # not done now: it must not count towards the rate
            else:
                self._images += images
            self._bar.update(images - self._under_way.pop(receipt.unit, 0))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def took(self) -> dict[str, int | float]:
        """Return images embedded now and before, seconds since the start, and images per second of now."""
        seconds = time.perf_counter() - self._started
        return {
            "images": self._images,
            "images_resumed": self._resumed,
            "seconds": round(seconds, 2),
            "images_per_s": round(self._images / seconds, 2),
        }
