"""Byte-level byte-pair encoding: ids 0 to 255 are bytes, each further id joins two earlier ones.

It lives here, and not in a library, because a model file must read raw text with nothing but Keras and this package
installed, and because BPE-dropout must follow the seed of a training run.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from dl_mamba.tokenizers.base import Tokenizer, checked_texts

Pair = tuple[int, int]
# A word with the space before it, a number, punctuation, or one white space: GPT-2's split without its contractions.
# Every character matches one of the four, so that the pieces of a text are the text. Merges do not cross them.
PIECES = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s")
DRAWS_PER_PIECE = 16
NEVER = 1 << 30


@keras.saving.register_keras_serializable(package="dl_mamba")
class BytePairTokenizer(Tokenizer):
    """Byte-level BPE, learned from texts; no text has unknown parts.

    Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016, over UTF-8 bytes as in
    GPT-2. A space goes before each text, so that a word is the same token wherever it stands.

    Args:
        merges: pairs of ids, in the order in which they were learned; pair i makes the id 256 + i.
        max_length, truncation, padding: see `ByteTokenizer`, counted in tokens.

    Raises:
        ValueError: a pair joins an id that does not exist yet.

    Example:

    >>> from dl_mamba.tokenizers import BytePairTokenizer
    >>> tokenizer = BytePairTokenizer.learn(["low lower lowest"] * 2, vocab_size=259)
    >>> [len(row) for row in tokenizer.rows(["low", "lowest"])]
    [1, 4]
    >>> tokenizer.decode(**tokenizer.encode(["so slow"]))
    ['so slow']
    """

    def __init__(self, merges: Sequence[Sequence[int]], **options: Any) -> None:
        super().__init__(**options)
        self.merges = [(int(left), int(right)) for left, right in merges]
        self._bytes = [bytes([i]) for i in range(256)]
        for new, pair in enumerate(self.merges, 256):
            if not 0 <= min(pair) <= max(pair) < new:
                raise ValueError(f"merges[{new - 256}]={pair}; two ids from 0 to {new - 1} are needed.")
            self._bytes.append(self._bytes[pair[0]] + self._bytes[pair[1]])
        self._id_of_pair = {pair: new for new, pair in enumerate(self.merges, 256)}
        self._known: dict[str, list[int]] = {}

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, **options: Any) -> BytePairTokenizer:
        """A tokenizer with the merges that shorten the texts most, of equally frequent pairs that of smaller ids first.

        Args:
            texts: strings.
            vocab_size: most tokens, >= 256; fewer if no pair is left that occurs twice.
            **options: `max_length`, `truncation`, `padding`.

        Raises:
            ValueError: `vocab_size` is below 256.
        """
        if vocab_size < 256:
            raise ValueError(f"vocab_size={vocab_size}; at least 256 is needed, one for each byte.")
        return cls(_learn_merges(checked_texts(texts), vocab_size), **options)

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.merges)

    def ids(self, text: str) -> list[int]:
        return [token for piece in _pieces(text) for token in self._merged(piece)]

    def ids_of_words(self, words: Iterable[str]) -> list[list[int]]:
        return [self.ids(word) for word in words]  # the space is there already

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def text_of(self, joined: bytes) -> str:
        return super().text_of(joined).removeprefix(" ")

    def varied(self, texts: Iterable[str], dropout: float, seed: int) -> Callable[[], list[np.ndarray]]:
        """A function that cuts the texts into tokens anew at each call, skipping merges by chance.

        BPE-dropout (Provilkov et al., "BPE-Dropout: Simple and Effective Subword Regularization", 2020): while a word
        is merged, each merge is passed over with the probability `dropout`. A word met often draws from 16 cuts.

        Args:
            texts: strings.
            dropout: probability, 0 <= dropout < 1.
            seed: of the draws.

        Returns:
            A function without arguments that returns one (tokens,) int32 array a text.
        """
        rng = np.random.default_rng(seed)
        drawn: dict[str, list[list[int]]] = defaultdict(list)
        pieces = [_pieces(text) for text in checked_texts(texts)]

        def cut_of(piece: str) -> list[int]:
            draws = drawn[piece]
            if len(draws) < DRAWS_PER_PIECE:
                draws.append(self._merged_by_chance(piece, dropout, rng))
                return draws[-1]
            return draws[int(rng.random() * DRAWS_PER_PIECE)]

        return lambda: [self.cut([token for piece in text for token in cut_of(piece)]) for text in pieces]

    def get_config(self) -> dict[str, Any]:
        return {"merges": [list(pair) for pair in self.merges], **super().get_config()}

    def _merged(self, piece: str) -> list[int]:
        if piece not in self._known:
            ids = list(piece.encode("utf-8", errors="replace"))
            while (new := min((self._id_of_pair.get(pair, NEVER) for pair in pairwise(ids)), default=NEVER)) != NEVER:
                ids = _replace(ids, self.merges[new - 256], new)
            self._known[piece] = ids
        return self._known[piece]

    def _merged_by_chance(self, piece: str, dropout: float, rng: np.random.Generator) -> list[int]:
        ids = list(piece.encode("utf-8", errors="replace"))
        while len(ids) > 1:
            kept = rng.random(len(ids) - 1) >= dropout
            made = [self._id_of_pair.get(p, NEVER) if k else NEVER for p, k in zip(pairwise(ids), kept, strict=True)]
            first = min(made)
            if first == NEVER:
                break
            ids[made.index(first) : made.index(first) + 2] = [first]
        return ids


def _pieces(text: str) -> list[str]:
    return PIECES.findall(" " + text)


def _replace(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """`ids` with each `pair`, from the left, as one `new` id."""
    out: list[int] = []
    for token in ids:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out


def _learn_merges(texts: Iterable[str], vocab_size: int) -> list[Pair]:
    counts = Counter(piece for text in texts for piece in _pieces(text))
    words = [(list(piece.encode("utf-8", errors="replace")), count) for piece, count in counts.items()]
    frequency: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = defaultdict(set)
    for place, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            frequency[pair] += count
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and 256 + len(merges) < vocab_size:
        negative, pair = heapq.heappop(heap)
        if frequency[pair] != -negative:
            continue  # an old entry; the newer one stands elsewhere in the heap
        if -negative < 2:
            break
        for touched in _merge_everywhere(words, places, frequency, pair, 256 + len(merges)):
            if frequency[touched] > 0:
                heapq.heappush(heap, (-frequency[touched], touched))
        merges.append(pair)
    return merges


def _merge_everywhere(
    words: list[tuple[list[int], int]], places: dict[Pair, set[int]], frequency: Counter[Pair], pair: Pair, new: int
) -> list[Pair]:
    """Merges a pair in every word that has it; returns the pairs whose frequency changed."""
    change: Counter[Pair] = Counter()
    for place in places.pop(pair):
        ids, count = words[place]
        after = _replace(ids, pair, new)
        for gone in pairwise(ids):
            change[gone] -= count
        for made in pairwise(after):
            change[made] += count
            places[made].add(place)
        words[place] = after, count
    touched = [changed for changed, difference in change.items() if difference]
    for changed in touched:
        frequency[changed] += change[changed]
    return touched
