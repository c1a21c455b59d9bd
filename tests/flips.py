"""One-bit damage to files."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path


def flipped_bits(files: Sequence[Path], count: int) -> Iterator[Path]:
    """Flip `count` random bits of these files, one after the other; yield the file while it is damaged."""
    rng = random.Random(0)
    for _ in range(count):
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        position, bit = rng.randrange(len(content)), rng.randrange(8)
        for last in (False, True):
            content[position] ^= 1 << bit
            path.write_bytes(content)
            if not last:
                yield path
