"""Batches of rows of unlike lengths: like lengths go together, and few shapes reach the compiler."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

SHORTEST_EDGE = 32


def length_edges(lengths: Sequence[int], shortest: int = SHORTEST_EDGE) -> list[int]:
    """Padded lengths for rows of these lengths: each twice the one before it.

    Args:
        lengths: one number a row, >= 0.
        shortest: the first edge, >= 1.

    Returns:
        Rising edges; the last one is the first that holds the longest row.

    Example:

    >>> from dl_mamba.heads.batches import length_edges
    >>> length_edges([3, 20, 50, 150])
    [32, 64, 128, 256]
    """
    longest = max([1, *map(int, lengths)])
    edges = [shortest]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return edges


class LengthBatches(keras.utils.PyDataset):
    """A dataset for `fit`, `evaluate` and `predict` whose batches hold rows of about one length.

    Every batch of one padded length has `batch_size` rows: what is left over moves on to the next longer batch. With
    `shuffle` the rows are dealt anew after each epoch, and the last batch is filled up with rows drawn a second time.

    Args:
        rows: one (length, ...) array a row, or a function that draws them; with `shuffle` it draws anew for each epoch.
        targets: arrays of one entry a row (labels, then sample weights), given out beside the inputs.
        batch_size: rows in a batch, >= 1.
        collate: (rows, length) -> the model's inputs, padded to that length.
        shuffle: deal the rows anew for each epoch.
        seed: of the shuffling; None follows `keras.utils.set_random_seed`.

    Attributes:
        order: the index of each row in the order of the batches, to bring predictions back into the rows' order.

    Raises:
        ValueError: no rows, a batch size below 1, or targets of another number.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.batches import LengthBatches
    >>> rows = [np.ones(n) for n in (40, 2, 50, 3)]
    >>> pad = lambda rows, length: np.stack([np.pad(row, (0, length - len(row))) for row in rows])
    >>> batches = LengthBatches(rows, [np.arange(4)], batch_size=2, collate=pad)
    >>> [(x.shape, y.tolist()) for x, y in (batches[0], batches[1])]
    [((2, 32), [1, 3]), ((2, 64), [0, 2])]
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray] | Callable[[], Sequence[np.ndarray]],
        targets: Sequence[Any] = (),
        *,
        batch_size: int,
        collate: Callable[[list[np.ndarray], int], Any],
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._draw = rows if callable(rows) else lambda: rows
        self.rows = list(self._draw())
        if not self.rows:
            raise ValueError("no rows were given; at least one is needed.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}; an integer >= 1 is needed.")
        self.targets = [np.asarray(target) for target in targets]
        for target in self.targets:
            if len(target) != len(self.rows):
                raise ValueError(
                    f"{len(self.rows)} rows came with {len(target)} labels or weights; one a row is needed."
                )
        self.batch_size = batch_size
        self.collate = collate
        self.shuffle = shuffle
        self._random = np.random.default_rng(random.getrandbits(32) if seed is None else seed)
        self._deal()

    @property
    def order(self) -> np.ndarray:
        return np.concatenate([rows for _, rows in self._batches])

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple:
        edge, places = self._batches[index]
        inputs = self.collate([self.rows[place] for place in places], edge)
        return (inputs, *(target[places] for target in self.targets))

    def on_epoch_end(self) -> None:
        if self.shuffle:
            self.rows = list(self._draw())
            self._deal()

    def _deal(self) -> None:
        """Fills the batches, shortest rows first; the longest batch comes second.

        Keras on TensorFlow reads the first two batches to see which axes vary.
        """
        lengths = [len(row) for row in self.rows]
        edges = length_edges(lengths)
        edge_of_row = np.searchsorted(edges, lengths)
        places = np.arange(len(self.rows))
        if self.shuffle:
            self._random.shuffle(places)
        batches, left = [], places[:0]
        for edge, length in enumerate(edges):
            bucket = np.concatenate([left, places[edge_of_row[places] == edge]])
            full = len(bucket) - len(bucket) % self.batch_size
            batches += [(length, part) for part in bucket[:full].reshape(-1, self.batch_size)]
            left = bucket[full:]
        if len(left):
            batches.append((edges[-1], self._filled(left)))
        self._batches = batches[:1] + batches[:0:-1]

    def _filled(self, left: np.ndarray) -> np.ndarray:
        """The last rows, with others drawn again while training: one shape less to compile."""
        if not self.shuffle or len(self.rows) < self.batch_size:
            return left
        return np.concatenate([left, self._random.choice(len(self.rows), self.batch_size - len(left), replace=False)])
