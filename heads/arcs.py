"""Arcs between tokens: the loss, the scores and the choice of a head and a relation for each token.

Logits are (batch, length, 1 + length, 1 + R): for each token (axis 1) and each head (axis 2: 0 is the root, j + 1 the
token at position j) the score of the arc, then the scores of R relations along it. Labels are (batch, length, 2), head
and relation, or (batch, length), the head alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dl_mamba.heads.base import is_real


def split_labels(labels: Any) -> tuple[Any, Any]:
    """Heads and relations (batch, length) int32; the relation is -100 where the labels have none."""
    labels = ops.cast(labels, "int32")
    if len(labels.shape) == 2:
        return labels, ops.full_like(labels, -100)
    heads = labels[..., 0]
    return heads, labels[..., 1] if labels.shape[-1] == 2 else ops.full_like(heads, -100)


def relations_at(logits: Any, heads: Any) -> Any:
    """Scores (batch, length, R) of the relations along the arcs to `heads` (batch, length)."""
    places = ops.cumsum(ops.ones_like(heads[:, :1, None] + ops.zeros_like(logits[:1, :1, :, 0], dtype="int32")), axis=2)
    chosen = ops.cast(ops.equal(heads[..., None], places - 1), "float32")
    return ops.einsum("blh,blhr->blr", chosen, logits[..., 1:])


def arc_losses(labels: Any, logits: Any, cross_entropy: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """Cross entropy of the head plus that of the relation along the right arc, and where there is a label."""
    heads, relations = split_labels(labels)
    real = ops.any(is_real(logits[..., 0]), axis=-1)
    losses = cross_entropy(logits[..., 0], heads)
    if logits.shape[-1] > 1:
        along = cross_entropy(relations_at(logits, ops.maximum(heads, 0)), relations)
        losses = losses + ops.where(relations >= 0, along, 0.0)
    return losses, ops.logical_and(heads >= 0, real)


def best_arcs(logits: Any) -> Any:
    """The best head of each token and the best relation along that arc: (batch, length, 2) int32, -100 at padding.

    Each token chooses for itself: the arcs need not form a tree; see `best_trees`.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.arcs import best_arcs
    >>> logits = np.zeros((1, 1, 2, 3), "float32")
    >>> logits[0, 0, 0] = [4.0, 0.0, 1.0]
    >>> np.asarray(best_arcs(logits)).tolist()
    [[[0, 1]]]
    """
    logits = ops.convert_to_tensor(logits)
    heads = ops.cast(ops.argmax(logits[..., 0], axis=-1), "int32")
    relations = ops.full_like(heads, -100)
    if logits.shape[-1] > 1:
        relations = ops.cast(ops.argmax(relations_at(logits, heads), axis=-1), "int32")
    real = ops.any(is_real(logits[..., 0]), axis=-1)
    return ops.where(real[..., None], ops.stack([heads, relations], axis=-1), -100)


def best_trees(logits: Any) -> np.ndarray:
    """The tree of each row with the largest sum of arc scores, and the best relation along each of its arcs.

    Exactly one token of a row hangs from the root. Source: Chu and Liu, "On the Shortest Arborescence of a Directed
    Graph", 1965, and Edmonds, "Optimum Branchings", 1967; O(length^3) at most.

    Args:
        logits: (batch, length, 1 + length, 1 + R) float, `NOWHERE` at padding.

    Returns:
        (batch, length, 2) int32, head and relation, -100 at padding and where there are no relations.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.arcs import best_arcs, best_trees
    >>> logits = np.array([[[0.0, -1e9, 5.0], [1.0, 5.0, -1e9]]])[..., None]
    >>> np.asarray(best_arcs(logits))[0, :, 0].tolist(), best_trees(logits)[0, :, 0].tolist()
    ([2, 1], [2, 0])
    """
    logits = np.asarray(logits, "float64")
    found = np.full((*logits.shape[:2], 2), -100, "int32")
    for row, scores in enumerate(logits):
        tokens = np.flatnonzero(is_real(scores[:, 0, 0]))
        places = np.concatenate([[0], tokens + 1])
        heads = places[_best_tree(scores[np.ix_(tokens, places)][..., 0])]
        found[row, tokens, 0] = heads
        if logits.shape[-1] > 1:
            found[row, tokens, 1] = scores[tokens, heads, 1:].argmax(-1)
    return found


def _best_tree(scores: np.ndarray) -> np.ndarray:
    """Heads (n,) of the best tree from scores (n, 1 + n): 0 is the root, j + 1 the token j."""
    size = 1 + len(scores)
    arcs = np.full((size, size), -np.inf)
    arcs[1:] = scores
    np.fill_diagonal(arcs, -np.inf)
    finite = arcs[np.isfinite(arcs)]
    if finite.size:
        arcs[:, 0] -= 1.0 + size * np.ptp(finite)  # a second arc from the root costs more than any tree gains by it
    return _arborescence(arcs)[1:]


def _arborescence(arcs: np.ndarray) -> np.ndarray:
    """Heads (n,) of the best spanning arborescence from node 0: `arcs[i, j]` is the score of j as the head of i."""
    heads = arcs.argmax(axis=1)
    heads[0] = 0
    cycle = _cycle(heads)
    if not len(cycle):
        return heads
    others = np.setdiff1d(np.arange(len(arcs)), cycle)  # the cycle becomes one node, behind the others
    joined = np.full((len(others) + 1,) * 2, -np.inf)
    joined[:-1, :-1] = arcs[np.ix_(others, others)]
    leaving = arcs[np.ix_(others, cycle)]
    entering = arcs[np.ix_(cycle, others)] - arcs[cycle, heads[cycle]][:, None]
    joined[1:-1, -1], joined[-1, :-1] = leaving.max(axis=1)[1:], entering.max(axis=0)
    found = _arborescence(joined)
    from_cycle = found[:-1] == len(others)
    heads[others] = np.where(from_cycle, cycle[leaving.argmax(axis=1)], np.append(others, 0)[found[:-1]])
    heads[cycle[entering[:, found[-1]].argmax()]] = others[found[-1]]
    return heads


def _cycle(heads: np.ndarray) -> np.ndarray:
    """The nodes of one cycle, other than that of node 0, or none."""
    color = np.zeros(len(heads), int)
    color[0] = -1
    for start in range(1, len(heads)):
        node = start
        while not color[node]:
            color[node] = start
            node = heads[node]
        if color[node] == start:
            path = [node]
            while heads[path[-1]] != node:
                path.append(heads[path[-1]])
            return np.array(path)
    return np.zeros(0, int)
