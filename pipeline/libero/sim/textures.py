"""Textures no larger than a camera can show: LIBERO's have up to 4,096 pixels a side, in 2 GB of a process's memory."""

import hashlib
import os
import re
from pathlib import Path

from pipeline.files import write_atomic_with
from pipeline.libero.installation import STATE_DIR

TEXELS_PER_PIXEL = 4
"""Side of the largest texture, in sides of a picture. At 4, pictures change by less than one grey level on average."""

METHOD = "box/v1"
"""How a copy is made; to be changed with it."""

_TEXTURE = re.compile(r'(<texture\b[^>]*?\bfile=")([^"]+)(")')


def shrink(xml: str, largest: int, cache: Path = STATE_DIR / "textures") -> tuple[str, dict[str, str]]:
    """Return a scene's XML with each texture beyond `largest` pixels a side replaced by a smaller copy.

    Args:
        xml: MuJoCo's, with absolute file names.
        largest: pixels.
        cache: where copies are kept, by content and size: a scene that was built before finds its own.

    Returns:
        The XML, and by the name of each copy that of its original.
    """
    originals: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(match[2]))  # as MuJoCo writes it
        small = _smaller(path, largest, cache)
        originals[str(small)] = str(path)
        return f"{match[1]}{small}{match[3]}"

    return _TEXTURE.sub(replace, xml), {small: path for small, path in originals.items() if small != path}


def _smaller(path: Path, largest: int, cache: Path) -> Path:
    from PIL import Image

    if not path.is_file():
        return path  # MuJoCo says so better
    with Image.open(path) as image:
        if max(image.size) <= largest:
            return path
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        content.update(f"{METHOD} {path}".encode())  # a copy stands for one name of the file
        small = cache / f"{content.hexdigest()[:16]}-{largest}.png"
        if not small.is_file():
            scale = largest / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            colours = "RGBA" if "A" in image.mode or "transparency" in image.info else "RGB"
            # The mean over each area, as a mipmap has it.
            reduced = image.convert(colours).resize((width, height), Image.Resampling.BOX)
            write_atomic_with(small, lambda partial: reduced.save(partial, "PNG"))
    return small
