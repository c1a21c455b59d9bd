"""Picture files of others: PNG and JPEG alone, and none that unpacks to more than memory has room for."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "JPEG")  # those that robots and data sets have; Pillow starts a program for some others
MAX_PIXELS = 1 << 26
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for a damaged file."""


@contextmanager
def opened(source: Path | BytesIO) -> Iterator[Image.Image]:
    """Give a picture, to be decoded in the block.

    Raises:
        ValueError: it cannot be read, also where that shows in the block, or has too many pixels.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; {MAX_PIXELS:,} are the most")
            yield image
    except UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
