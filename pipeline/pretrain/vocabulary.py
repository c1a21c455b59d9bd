"""The vocabulary of the project's own CLIP: of OpenAI's byte pairs the commonest, and those that LIBERO's words need.

python -m pipeline.pretrain.vocabulary        # writes it anew, where pipeline.encode.own finds it
"""

import gzip
import re
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from pipeline.encode.own import MODEL, VOCABULARY
from pipeline.files import write_atomic
from pipeline.libero.paraphrase import paraphrases
from pipeline.libero.suites import SUITES, tasks
from pipeline.scenes.sentences import HOLDS_NOTHING, SWITCHED, WAYS
from pipeline.scenes.words import NAMES, PART_NAMES, PLACE_NAMES

COMMON = 1500


def words() -> list[str]:
    """Return every word of LIBERO's instructions and of the sentences that scenes are described in, for training."""
    texts = [text for suite in SUITES for task in tasks(suite) for text in paraphrases(task.language)]
    texts += [name for names in NAMES.values() for name in names] + [*PLACE_NAMES.values(), *HOLDS_NOTHING[:-1]]
    texts += [f"{name} {' '.join(states)}" for parts in PART_NAMES.values() for name, states in parts.values()]
    texts += [re.sub(r"\{\w+\}", " ", way) for ways in (*WAYS.values(), SWITCHED) for way in ways[:-1]]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def merges(whole: list[str]) -> list[str]:
    """Return the byte pairs, in OpenAI's order, that make each of `whole` one token, and the COMMON first ones."""
    ranked = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    rank = {tuple(pair.split()): i for i, pair in enumerate(ranked)}
    needed = set(range(COMMON))
    for word in whole:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            needed.add(rank[best])
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
    return [ranked[i] for i in sorted(needed)]


def content() -> bytes:
    """Return the vocabulary's file, as open_clip's tokenizer reads it: the same bytes each time."""
    return gzip.compress("\n".join(["#version: 0.2", *merges(words())]).encode(), mtime=0)


if __name__ == "__main__":
    write_atomic(VOCABULARY, content())
    print(f"{VOCABULARY}: vocab_size {SimpleTokenizer(str(VOCABULARY)).vocab_size} of {MODEL}")
