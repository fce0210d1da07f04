"""Labels, looked at before a long run: an error names the task, the row and the place of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.models.inputs import is_concrete

CLASSES = ("softmax", "crf", "next_token")


def check_labels(
    tasks: NLPTaskConfig | Sequence[NLPTaskConfig],
    labels: Any,
    attention_mask: Any = None,
    *,
    allow_missing: bool | None = None,
) -> None:
    """Compare labels with the task that they are for.

    Args:
        tasks: one task, or those of a model of several tasks.
        labels: what `fit` gets as `y`: an array for one task, a dictionary of arrays by name for several.
        attention_mask: (batch, length) or (batch, choices, length), true at real tokens, or None.
        allow_missing: rows without any label are in order; so it is with several tasks, if None, and not with one.

    Raises:
        ValueError: a label is out of range, a span lies outside its text or ends before it starts, an arc leads to
            padding, a row or a whole task has no labels, or the number of rows differs.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, check_labels
    >>> check_labels(NLPTaskConfig("mood", "sentiment_analysis", num_classes=2), np.array([0, 1, 2]))
    Traceback (most recent call last):
    ValueError: labels of 'mood': row 2 has 2; 0 to 1 is needed, or -100 where there is no label.
    """
    if isinstance(tasks, NLPTaskConfig):
        _check_task(tasks, np.asarray(labels), attention_mask, bool(allow_missing))
        return
    if not isinstance(labels, Mapping) or set(labels) != {task.name for task in tasks}:
        came = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
        raise ValueError(
            f"labels are {came}; a dictionary with the keys {sorted(task.name for task in tasks)} is needed. Where a "
            "task has no labels, give an array of -100, or of NaN for numbers."
        )
    for task in tasks:
        _check_task(task, np.asarray(labels[task.name]), attention_mask, allow_missing is not False)


def check_range(name: str, kind: str, labels: Any, logits: Any) -> None:
    """The part of the check that needs no more than labels and logits, where their values can be seen.

    Raises:
        ValueError: a label is out of range.
    """
    if not (is_concrete(labels) and is_concrete(logits)):
        return
    labels = np.asarray(ops.convert_to_numpy(labels))
    if kind == "arc":
        _upper(name, labels if labels.ndim == 2 else labels[..., 0], logits.shape[2] - 1)
        if labels.ndim == 3 and labels.shape[-1] == 2 and logits.shape[-1] > 1:
            _upper(name, labels[..., 1], logits.shape[-1] - 2, "relation ")
    elif kind == "span":
        _upper(name, labels, logits.shape[1] - 1)
    elif kind == "sigmoid":
        _zero_or_one(name, labels)
    elif kind in CLASSES:
        _upper(name, labels, logits.shape[-1] - 1)


def _check_task(task: NLPTaskConfig, labels: np.ndarray, mask: Any, allow_missing: bool) -> None:
    mask = None if mask is None else np.asarray(mask).astype(bool)
    if mask is not None and len(mask) != len(labels):
        raise ValueError(
            f"labels of {task.name!r}: {len(labels)} rows; one for each of the {len(mask)} texts is needed."
        )
    kind = getattr(task.head_class.make_loss(task), "kind", None)
    known = ~np.isnan(labels) if kind in ("squared_error", "listwise") else labels >= 0
    rows = known.reshape(len(labels), -1).any(axis=1)
    if not rows.any():
        raise ValueError(f"labels of {task.name!r}: no row has a label.")
    if not allow_missing and not rows.all():
        raise ValueError(f"labels of {task.name!r}: row {int(np.argmin(rows))} has no label.")
    _ranges(task, kind, labels)
    if mask is not None and kind in ("span", "arc", "softmax"):
        _inside(task, kind, labels, mask)


def _ranges(task: NLPTaskConfig, kind: str | None, labels: np.ndarray) -> None:
    if kind == "sigmoid":
        _zero_or_one(task.name, labels)
    elif kind == "arc":
        if labels.ndim == 3 and labels.shape[-1] == 2 and task.num_classes is not None:
            _upper(task.name, labels[..., 1], task.num_classes - 1, "relation ")
    elif kind == "span":
        backwards = np.flatnonzero((labels >= 0).all(axis=1) & (labels[:, 1] < labels[:, 0]))
        if len(backwards):
            row = backwards[0]
            raise ValueError(
                f"labels of {task.name!r}: row {row} has {labels[row].tolist()}, which ends before it starts."
            )
    elif kind in CLASSES:
        size = task.vocab_size if task.num_classes is None else task.num_classes
        if size is not None:
            _upper(task.name, labels, size - 1)


def _inside(task: NLPTaskConfig, kind: str, labels: np.ndarray, mask: np.ndarray) -> None:
    """Places that labels name must be real tokens, or real choices."""
    if kind == "softmax" and mask.ndim == 2:
        return  # classes of rows or of tokens, not places
    name = task.name
    if kind == "arc":
        places = np.where(mask, (labels if labels.ndim == 2 else labels[..., 0]) - 1, -1)
        own = np.argwhere(places == np.arange(places.shape[1]))
        if len(own):
            row, place = own[0]
            raise ValueError(f"labels of {name!r}: row {row}, the token at position {place} is its own head.")
    else:
        places = labels.reshape(len(labels), -1) - task.unanswerable
        mask = mask.any(axis=-1) if mask.ndim == 3 else mask
    for row, wanted in enumerate(places):
        for place in wanted[wanted >= 0].astype(int):
            if place >= mask.shape[1] or not mask[row, place]:
                raise ValueError(
                    f"labels of {name!r}: row {row} names position {place}, which is no real token of its "
                    f"{int(mask[row].sum())}; see attention_mask."
                )


def _upper(name: str | None, labels: np.ndarray, largest: int | None, what: str = "") -> None:
    if largest is None or not (labels > largest).any():
        return
    row, *place = (int(index) for index in np.argwhere(labels > largest)[0])
    where = f", position {place[0]}" if place and labels.shape[-1] > 1 else ""
    raise ValueError(
        f"labels of {name!r}: row {row}{where} has {what}{int(labels[(row, *place)])}; 0 to {largest} is needed, "
        "or -100 where there is no label."
    )


def _zero_or_one(name: str | None, labels: np.ndarray) -> None:
    wrong = (labels > 0) & (labels != 1)
    if wrong.any():
        row, *place = (int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"labels of {name!r}: row {row}, class {place[-1]} has {labels[(row, *place)]}; 0 or 1 is needed, or -100 "
            "for every class of what has no label."
        )
