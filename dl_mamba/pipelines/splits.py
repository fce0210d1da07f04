"""Label names, class numbers, and a held-out part in which every class keeps its share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.tables import Examples


def class_names(examples: Examples) -> list[str]:
    """The different labels, numbers in their own order and words in the alphabet's.

    Args:
        examples: labelled examples.

    Returns:
        Two or more names.

    Raises:
        InputError: all examples are of one class.

    Example:

    >>> from dl_mamba.pipelines.splits import class_names
    >>> from dl_mamba.pipelines.tables import Examples
    >>> class_names(Examples("digits.csv", "text", ["", "", ""], ["10", "9", "10"]))
    ['9', '10']
    """
    names = set(examples.labels)
    if len(names) < 2:
        raise InputError(f"{examples.source} has one class only, {names.pop()!r}; two or more are needed to train.")
    return in_order(names)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes, numbers in their own order and words in the alphabet's.

    Example:

    >>> from dl_mamba.pipelines.splits import in_order
    >>> in_order({"10", "9"})
    ['9', '10']
    """
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else str)


def class_numbers(examples: Examples, names: Sequence[str]) -> np.ndarray:
    """The place of each label in `names`.

    Args:
        examples: labelled examples.
        names: label names of the training data.

    Returns:
        (examples,) int32.

    Raises:
        InputError: a label is not among the names.

    Example:

    >>> from dl_mamba.pipelines.splits import class_numbers
    >>> from dl_mamba.pipelines.tables import Examples
    >>> class_numbers(Examples("a.csv", "text", ["", ""], ["up", "down"]), ["down", "up"]).tolist()
    [1, 0]
    """
    number = {name: place for place, name in enumerate(names)}
    for row, label in enumerate(examples.labels, 1):
        if label not in number:
            shown = ", ".join(map(repr, names[:12]))
            raise InputError(f"row {row} of {examples.source} has the label {label!r}; the training data has {shown}.")
    return np.array([number[label] for label in examples.labels], "int32")


def stratified_split(classes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of a large and a small part; each class gives the small part its share, and keeps one example at least.

    Args:
        classes: (examples,) int, the class of each.
        fraction: share of the small part, 0 < fraction < 1.
        seed: of the draw.

    Returns:
        Rising places of the large part and of the small part; together they are all, and none is in both.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.splits import stratified_split
    >>> large, small = stratified_split(np.array([0] * 8 + [1] * 4), 0.25, seed=0)
    >>> len(large), [int((small < 8).sum()), int((small >= 8).sum())]
    (9, [2, 1])
    """
    random = np.random.default_rng(seed)
    small = []
    for number in np.unique(classes):
        places = random.permutation(np.flatnonzero(classes == number))
        small.append(places[: min(max(1, round(fraction * len(places))), len(places) - 1)])
    small = np.sort(np.concatenate(small))
    return np.setdiff1d(np.arange(len(classes)), small), small
