"""CLIP's byte pair encoding (Radford et al., arXiv 2103.00020), without torch and without open_clip: ASCII text only.

In ASCII the letters, digits and spaces of CLIP's pattern are those of Python's `re`, and there is nothing to repair.
"""

import html
import itertools
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.errors import DataError

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
PATTERN = re.compile(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")


class BytePairs:
    """Instructions to tokens.

    Args:
        merges: the pairs that are joined, "a b", the ones to be joined first first.
        length: tokens that the text tower takes, L.
    """

    def __init__(self, merges: Sequence[str], length: int) -> None:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        letters = _letters()
        # CLIP's vocabulary lists the bytes that are printable first, then the others, each once more as a word's end.
        alphabet = [letters[byte] for byte in sorted(letters, key=lambda byte: (letters[byte] != chr(byte), byte))]
        words = [*alphabet, *(letter + WORD_END for letter in alphabet), *("".join(p) for p in pairs), START, END]
        self._ids = {word: i for i, word in enumerate(words)}
        self._ranks = {pair: i for i, pair in enumerate(pairs)}
        self._letters = letters
        self._length = length
        self._pieces = lru_cache(maxsize=4096)(self._split)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the tokens of each text, (B, L) int64; what is too long is cut, and zeros follow what is shorter.

        Raises:
            DataError: text that is not ASCII.
        """
        rows = np.zeros((len(texts), self._length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens = [self._ids[START], *self.encode(text), self._ids[END]][: self._length]
            tokens[-1] = self._ids[END]
            row[: len(tokens)] = tokens
        return rows

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text alone, however many, without start and end. Raises DataError as a call does."""
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        if not text.isascii():
            odd = next(letter for letter in text if not letter.isascii())
            raise DataError(f"the instruction {text!r} has {odd!r}, which is not ASCII. Write it in ASCII")
        return [self._ids[piece] for word in PATTERN.findall(text) for piece in self._pieces(word)]

    def _split(self, word: str) -> tuple[str, ...]:
        """Return a word's pieces: its letters, joined pair by pair, the pair that comes first in the list first."""
        if word in (START, END):
            return (word,)
        pieces = [self._letters[byte] for byte in word.encode()]
        pieces[-1] += WORD_END
        while len(pieces) > 1:
            pairs = set(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined: list[str] = []
            for piece in pieces:
                # What was joined in this pass is longer than best[0], so that no piece is joined twice.
                if joined and (joined[-1], piece) == best:
                    joined[-1] += piece
                else:
                    joined.append(piece)
            pieces = joined
        return tuple(pieces)


def _letters() -> dict[int, str]:
    """Return a printable letter for each byte: itself, if it is one, or the next one from 256 on (as GPT-2 has it)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
