"""When two rows say the same: to the letter by digest, nearly by MinHash over word 5-grams (Broder 1997)."""

import json
import re
import zlib
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from luthier.core.chat import Conversation, Message

Sketch = npt.NDArray[np.uint32]
"""A text's MinHash values, 512 bytes."""

NEAR = 0.8
"""Estimated Jaccard similarity from which two texts are nearly the same."""

NUM_PERMUTATIONS = 128
"""Standard error of the estimate at a similarity of 0.8: √(0.8·0.2 / 128) = 0.035."""

BANDS, ROWS_PER_BAND = 16, 6
"""A pair of similarity s meets in a bucket with probability 1 − (1 − s⁶)¹⁶: 0.99 at 0.8, 0.22 at 0.5, 0.01 at 0.3."""

FULL_BUCKET = 16
"""A bucket keeps its first 16 texts. What more than 16 share is boilerplate; twins meet in other bands, and cost stays linear."""

SHINGLES_AT_ONCE = 8192
"""Bounds the working memory for a book-long text to 4 MB."""

SHINGLE = 5
"""Words per shingle; a shorter text is one shingle of all its words."""

WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\W\u2e80-\u9fff\uf900-\ufaff]+")
"""A run of letters and digits, or one character of a script that is written without spaces."""


def prompt_text(conversation: Conversation) -> str:
    """What is asked: the turns before the last, without system turns."""
    return _text(conversation.messages[:-1])


def whole_text(conversation: Conversation) -> str:
    """All turns but system turns."""
    return _text(conversation.messages)


def plain(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def digest(text: str) -> bytes:
    """16 bytes that stand for the text: among 10⁹ texts two agree by chance with probability 10⁻²⁰."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def canonical(conversation: Conversation) -> str:
    """One text for equal conversations, system turns left out, every letter and tool call counted."""
    messages = [message.to_template() for message in conversation.messages if message.role != "system"]
    return json.dumps([messages, conversation.tools], sort_keys=True, ensure_ascii=False, default=str)


class NearIndex:
    """Numbered texts that can be asked for those nearly the same. Keeps no text: 2.8 KB per entry, whatever its length."""

    def __init__(self) -> None:
        from datasketch import MinHash  # with scipy behind it, 0.7 s to import

        self._empty = MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
        self._sketches: list[Sketch] = []
        self._buckets: dict[int, tuple[int, ...]] = {}

    def sketch(self, text: str) -> Sketch:
        """The text's MinHash values."""
        minhash = self._empty.copy()
        shingles = shingle_hashes(text).tolist()
        for start in range(0, len(shingles), SHINGLES_AT_ONCE):
            minhash.update_batch(shingles[start : start + SHINGLES_AT_ONCE])
        return np.asarray(minhash.hashvalues, dtype=np.uint32)

    def add(self, sketch: Sketch) -> int:
        """Keeps a text's sketch; its number, counted from 0."""
        number = len(self._sketches)
        self._sketches.append(sketch)
        for key in _bands(sketch):
            bucket = self._buckets.get(key, ())
            if len(bucket) < FULL_BUCKET:
                self._buckets[key] = (*bucket, number)
        return number

    def twin(self, sketch: Sketch) -> int | None:
        """The number of the first kept text that is nearly the same, or None."""
        candidates = sorted({number for key in _bands(sketch) for number in self._buckets.get(key, ())})
        if not candidates:
            return None
        similarity = (np.stack([self._sketches[number] for number in candidates]) == sketch).mean(axis=1)
        near = np.flatnonzero(similarity >= NEAR)
        return candidates[near[0]] if len(near) else None


def shingle_hashes(text: str) -> npt.NDArray[np.uint64]:
    """32-bit hashes of the text's word 5-grams, case and punctuation left out; repeated ones are repeated."""
    words = WORD.findall(text.casefold()) or [text]
    hashes = np.array(list(map(zlib.crc32, map(str.encode, words))), dtype=np.uint64)
    num_shingles = max(1, len(words) - SHINGLE + 1)
    mixed = np.zeros(num_shingles, dtype=np.uint64)
    for offset in range(min(SHINGLE, len(words))):
        mixed = (mixed + hashes[offset : offset + num_shingles] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return mixed & np.uint64(0xFFFFFFFF)


def _bands(sketch: Sketch) -> list[int]:
    """One bucket key per band; equal keys from unequal bands (64 bits) cost a comparison, never a wrong answer."""
    bands = sketch[: BANDS * ROWS_PER_BAND].reshape(BANDS, ROWS_PER_BAND)
    return [hash((number, band.tobytes())) for number, band in enumerate(bands)]


def _text(messages: Sequence[Message]) -> str:
    parts = []
    for message in messages:
        if message.role != "system":
            parts.append(message.content)
            parts += [json.dumps(call, sort_keys=True, ensure_ascii=False, default=str) for call in message.tool_calls]
    return "\n\n".join(parts)
