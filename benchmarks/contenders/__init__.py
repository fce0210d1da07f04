"""One module for each contender: `prepare(case)` returns the `Work` that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """A prepared piece of work.

    Attributes:
        run: does it once and waits for its end.
        results: named arrays of what `run` returned, to be compared with those of the other contenders; none where
            the mathematics is another one.
    """

    run: Callable[[], Any]
    results: Callable[[Any], Arrays] = lambda _: {}
