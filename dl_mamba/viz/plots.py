"""Pictures of arrays. Each function draws on the axes it is given, or on new ones, and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

UNITS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (share of examples)"}
MOST_NAMED = 40  # tokens; the names of more would overlap


def plot_attention(
    matrix: np.ndarray,
    tokens: Sequence[str] | None = None,
    ax: Any = None,
    title: str = "",
    label: str = "weight M[i, j] (no unit)",
) -> Any:
    """A hidden attention matrix: red entries add the token, blue ones subtract it.

    Args:
        matrix: (length, length) float, one channel or head of `hidden_attention`.
        tokens: one name a token, shown up to 40 of them; positions if None.
        ax: matplotlib axes to draw on; new ones of pyplot if None.
        title: line above the picture.
        label: what the entries are, with their unit; stands at the colour bar.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the matrix is not square, or the tokens are not as many as its rows.

    Example:

    >>> import numpy as np
    >>> from dl_mamba import viz
    >>> viz.plot_attention(np.tri(3), tokens=["a", "b", "c"]).get_ylabel()
    'output at token i'
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"matrix has shape {matrix.shape}; (length, length) is needed, e.g. hidden_attention(...)[0, 0]."
        )
    _check_tokens(tokens, len(matrix))
    ax = _axes(ax, (5.5, 4.5))
    limit = float(np.abs(matrix).max()) or 1.0
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=label)
    _name_tokens(ax.xaxis, tokens, len(matrix), "input token j")
    _name_tokens(ax.yaxis, tokens, len(matrix), "output at token i")
    ax.set_title(title)
    return ax


def plot_token_map(
    values: np.ndarray,
    label: str,
    tokens: Sequence[str] | None = None,
    ax: Any = None,
    title: str = "",
    channels: str = "channel",
) -> Any:
    """A number for each token and channel as a map: step sizes, decays, what is left, or one state over time.

    Args:
        values: (length, channels) float, e.g. `step_sizes(layer, x)[0]`.
        label: what the numbers are, with their unit, such as `"dt (steps)"`; stands at the colour bar.
        tokens: one name a token, shown up to 40 of them; positions if None.
        ax: matplotlib axes to draw on; new ones of pyplot if None.
        title: line above the picture.
        channels: what a row is, such as `"head"`.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `values` has other axes, or the tokens are not as many as its rows.

    Example:

    >>> import numpy as np
    >>> from dl_mamba import viz
    >>> viz.plot_token_map(np.ones((5, 3)), "dt (steps)").get_ylabel()
    'channel (index)'
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"values has shape {values.shape}; (length, channels) is needed, e.g. step_sizes(...)[0].")
    _check_tokens(tokens, len(values))
    ax = _axes(ax, (8, 3))
    signed = values.min() < 0
    limits = {"vmin": -np.abs(values).max(), "vmax": np.abs(values).max()} if signed else {}
    cmap = "RdBu_r" if signed else "viridis"
    image = ax.imshow(values.T, aspect="auto", cmap=cmap, interpolation="nearest", **limits)
    ax.figure.colorbar(image, ax=ax, label=label)
    _name_tokens(ax.xaxis, tokens, len(values), "token")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(ylabel=f"{channels} (index)", title=title)
    return ax


def plot_state_norms(norms: np.ndarray, ax: Any = None, label: str = "", title: str = "") -> Any:
    """The size of the state over tokens: the median of the channels, and the band between their quartiles.

    Args:
        norms: (length, channels) float, one row of `state_norms`.
        ax: matplotlib axes to draw on; new ones of pyplot if None.
        label: name of the line in a legend; no legend if empty.
        title: line above the picture.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `norms` has other axes.

    Example:

    >>> import numpy as np
    >>> from dl_mamba import viz
    >>> viz.plot_state_norms(np.ones((5, 3))).get_xlabel()
    'position (tokens)'
    """
    norms = np.asarray(norms)
    if norms.ndim != 2:
        raise ValueError(f"norms has shape {norms.shape}; (length, channels) is needed, e.g. state_norms(...)[0].")
    ax = _axes(ax, (7, 3))
    low, middle, high = np.quantile(norms, [0.25, 0.5, 0.75], axis=1)
    (line,) = ax.plot(middle, label=label or None)
    ax.fill_between(range(len(middle)), low, high, alpha=0.25, color=line.get_color())
    ax.set(xlabel="position (tokens)", ylabel="norm of the state (no unit)", title=title)
    ax.grid(alpha=0.3)
    if label:
        ax.legend()
    return ax


def plot_learning_curve(
    history: Mapping[str, Sequence[float]],
    metric: str = "loss",
    ax: Any = None,
    best_epoch: int | None = None,
    label: str | None = None,
) -> Any:
    """A metric by epoch, for training and validation data.

    Args:
        history: lists by name, as the `history` of Keras's `History` has them: `metric` and, if there, `val_` + it.
        metric: which one.
        ax: matplotlib axes to draw on; new ones of pyplot if None.
        best_epoch: epoch whose weights were kept, from 1; marked by a line.
        label: what the metric is, with its unit; known for `"loss"`, taken as cross-entropy, and `"accuracy"`.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the history has no such metric.

    Example:

    >>> from dl_mamba import viz
    >>> viz.plot_learning_curve({"loss": [1.0, 0.5], "val_loss": [1.1, 0.7]}).get_ylabel()
    'cross-entropy (nats)'
    """
    lines = {name: text for name, text in ((metric, "training"), (f"val_{metric}", "validation")) if name in history}
    if not lines:
        raise ValueError(f"the history has no {metric!r}; it has {sorted(history)}.")
    ax = _axes(ax, (4.5, 3.5))
    for name, text in lines.items():
        ax.plot(range(1, len(history[name]) + 1), history[name], marker=".", label=text)
    if best_epoch is not None:
        ax.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: epoch {best_epoch}")
    ax.set(xlabel="epoch", ylabel=label or UNITS.get(metric, metric))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def confusion_counts(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was taken for each other.

    Args:
        true, predicted: (examples,) int, class numbers.
        num_classes: number of classes.

    Returns:
        (num_classes, num_classes) int; row: the true class, column: the predicted one.

    Example:

    >>> import numpy as np
    >>> from dl_mamba import viz
    >>> viz.confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((num_classes, num_classes), "int64")
    np.add.at(counts, (true, predicted), 1)
    return counts


def plot_confusion_matrix(counts: np.ndarray, label_names: Sequence[str], ax: Any = None, title: str = "") -> Any:
    """A matrix of counts with named classes on both axes; the shade is the logarithm, so that one mistake is seen.

    Args:
        counts: what `confusion_counts` returns.
        label_names: one name a class.
        ax: matplotlib axes to draw on; new ones of pyplot if None.
        title: line above the matrix.

    Returns:
        The matplotlib axes.

    Raises:
        ImportError: matplotlib is not installed.

    Example:

    >>> import numpy as np
    >>> from dl_mamba import viz
    >>> viz.plot_confusion_matrix(np.eye(2, dtype=int), ["no", "yes"]).get_xlabel()
    'predicted class'
    """
    side = 2.5 + 0.4 * len(label_names)
    ax = _axes(ax, (side, side))
    shades = np.log1p(counts)
    ax.imshow(shades, cmap="Blues", vmin=0.0)
    ticks = range(len(label_names))
    ax.set_xticks(ticks, label_names, rotation=90 if max(map(len, label_names)) > 3 else 0)
    ax.set_yticks(ticks, label_names)
    ax.set(xlabel="predicted class", ylabel="true class", title=title)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shades[row, column] > shades.max() / 2 else "black"
            ax.text(column, row, str(count), ha="center", va="center", color=color)
    return ax


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    """The axes given, or new ones."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ImportError('drawing needs matplotlib, which is not installed: pip install "dl-mamba[plots]"') from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def _check_tokens(tokens: Sequence[str] | None, length: int) -> None:
    if tokens is not None and len(tokens) != length:
        raise ValueError(f"{len(tokens)} tokens came for a length of {length}; one name for each is needed.")


def _name_tokens(axis: Any, tokens: Sequence[str] | None, length: int, label: str) -> None:
    """Ticks of an axis that has one entry a token."""
    named = tokens is not None and length <= MOST_NAMED
    axis.set_label_text(label if named else f"{label} (position)")
    if not named:
        axis.get_major_locator().set_params(integer=True)
        return
    turned = axis.axis_name == "x" and max(map(len, tokens)) > 2
    axis.set_ticks(range(length), tokens, rotation=90 if turned else 0)
