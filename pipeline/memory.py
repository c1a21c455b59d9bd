"""Have glibc keep the memory that is freed, instead of handing it back to the kernel.

A forward pass frees and asks again for blocks of 10 MB, some ten times. glibc returns each to the kernel, which faults
it in again page by page: a third of the embedding's CPU time, and of a training step's on patch tokens. Dask makes it
worse by having its workers return everything beyond 64 KiB.
"""

import ctypes
import os

MIB = 2**20
# Variable of the environment -> parameter of mallopt (malloc.h) and value.
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * MIB),  # the most it takes: larger blocks come and go by themselves
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 * MIB),  # as large as a heap of a thread's own, which then is never given up
}
WORKER_ENVIRONMENT = {name: value for name, (_, value) in SETTINGS.items()}
"""For processes that are yet to start. What a user has set in the environment goes before it."""


def keep_freed_memory() -> None:
    """Do so in this process, from now on, but for what the environment sets. Without glibc this does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, (parameter, value) in SETTINGS.items():
            if name not in os.environ:
                mallopt(parameter, value)
