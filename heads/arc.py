"""Arcs between tokens: dependencies, antecedents, relations, scored by deep biaffine attention."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.arcs import best_arcs, best_trees
from dl_mamba.heads.base import NOWHERE, TaskHead, read, real_tokens, width_of
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.tasks import NLPTaskConfig


@keras.saving.register_keras_serializable(package="dl_mamba")
class ArcHead(TaskHead):
    """Scores of arcs from each token to each other one (Dozat and Manning, "Deep Biaffine Attention", 2017).

    Two layers of width `hidden_size` look at each token as dependent d and as head h. The arc from i to j scores
    `d[i] U h[j] + u h[j]` (eq. 6), the relation r along it `d[i] W[r] h[j] + V[r] [d[i]; h[j]] + b[r]` (eq. 3).

    `problem_type="single_label"`: each token has one head, the root being a learned vector; for coreference the head
    is the antecedent, the root means that there is none, and `num_classes` may be left out. With `tree`, as for
    dependencies, `decode` gives the best tree with one root. `"multi_label"`: each ordered pair of tokens may have any
    number of relations.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Returns:
        float32, -1e9 at padding and from a token to itself: logits (batch, length, 1 + length, 1 + num_classes) as
        `dl_mamba.heads.arcs` describes them, with labels (batch, length, 2) or (batch, length); for several labels
        (batch, length, length, num_classes), with labels of that shape.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("tree", "dependency_parsing", num_classes=3))
    >>> logits = head({"last_hidden_state": np.ones((2, 5, 8), "float32")})
    >>> tuple(logits.shape), head.decode(logits).shape
    ((2, 5, 6, 4), (2, 5, 2))
    """

    fields = ("num_classes", "label_names", "hidden_size", "label_smoothing", "problem_type", "tree")
    optional = ("num_classes",)
    problem_types = ("single_label", "multi_label")
    defaults = MappingProxyType({"hidden_size": 128, "problem_type": "single_label", "tree": False})

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.hidden = None
        names = [] if self.pairs else ["dependent", "head"]
        names += ["relation_dependent", "relation_head"] if self.config.num_classes else []
        self.roles = [self._dense(self.config.hidden_size, name, activation="relu") for name in names]

    @classmethod
    def check(cls, config: NLPTaskConfig) -> None:
        if config.problem_type == "multi_label" and config.num_classes is None:
            raise ValueError("num_classes=None; the number of relations is needed where pairs of tokens have several.")
        if config.problem_type == "multi_label" and config.tree:
            raise ValueError("tree=True needs one head for each token; leave it out, or problem_type='multi_label'.")

    @property
    def pairs(self) -> bool:
        """Whether every pair of tokens has relations of its own, rather than each token one head."""
        return self.config.problem_type == "multi_label"

    def build(self, input_shape: Any) -> None:
        size, relations = self.config.hidden_size, self.config.num_classes
        for role in self.roles:
            role.build((None, None, width_of(input_shape)))
        if not self.pairs:
            self.arc = self._weight("arc", (size, size))
            self.arc_prior = self._weight("arc_prior", (size,), "zeros")
            self.root = self._weight("root", (len(self.roles) // 2, size), "random_normal")
        if relations:
            self.relation = self._weight("relation", (size, relations, size))
            self.relation_sides = self._weight("relation_sides", (2, size, relations))
            self.relation_bias = self._weight("relation_bias", (relations,), "zeros")

    def _weight(self, name: str, shape: tuple, initializer: str = "glorot_uniform") -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, mask = read(inputs, mask)
        real, x = real_tokens(x, mask), self.dropout(x)
        sides = [ops.cast(self.dropout(role(x)), "float32") for role in self.roles]
        if self.pairs:
            allowed = ops.logical_and(real[:, :, None], real[:, None, :])
            return ops.where(allowed[..., None], self._relations(*sides), NOWHERE)
        for i in range(len(sides) // 2):
            sides[2 * i + 1] = self._with_root(sides[2 * i + 1], self.root[i])
        scores = [self._arcs(*sides[:2])[..., None]]
        if self.config.num_classes:
            scores.append(self._relations(*sides[2:]))
        return ops.where(self._allowed(real)[..., None], ops.concatenate(scores, axis=-1), NOWHERE)

    @staticmethod
    def _with_root(heads: Any, root: Any) -> Any:
        return ops.concatenate([ops.zeros_like(heads[:, :1]) + root, heads], axis=1)

    def _arcs(self, d: Any, h: Any) -> Any:
        scores = ops.einsum("bip,pq,bjq->bij", d, ops.convert_to_tensor(self.arc), h)
        return scores + ops.einsum("bjq,q->bj", h, ops.convert_to_tensor(self.arc_prior))[:, None]

    def _relations(self, d: Any, h: Any) -> Any:
        sides = ops.convert_to_tensor(self.relation_sides)
        here, there = ops.matmul(d, sides[0]), ops.matmul(h, sides[1])
        turned = ops.einsum("bip,prq->birq", d, ops.convert_to_tensor(self.relation))
        scores = ops.einsum("birq,bjq->bijr", turned, h)
        return scores + here[:, :, None] + there[:, None] + self.relation_bias

    @staticmethod
    def _allowed(real: Any) -> Any:
        """(batch, length, 1 + length): real dependents, the root and real heads, no token its own head."""
        place = ops.cumsum(ops.ones_like(real, dtype="int32"), axis=1)
        other = ops.not_equal(place[:, :, None], place[:, None, :])
        tokens = ops.logical_and(other, real[:, None, :])
        root = ops.ones_like(tokens[:, :, :1])
        return ops.logical_and(real[:, :, None], ops.concatenate([root, tokens], axis=2))

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask)
        batch, length, classes = *x.shape[:2], self.config.num_classes
        if self.pairs:
            return keras.KerasTensor((batch, length, length, classes), dtype="float32")
        heads = None if length is None else length + 1
        return keras.KerasTensor((batch, length, heads, 1 + (classes or 0)), dtype="float32")

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        kind = "sigmoid" if config.problem_type == "multi_label" else "arc"
        return TaskLoss(kind, config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        if config.problem_type == "multi_label":
            return [TaskScore("binary_accuracy")]
        return [TaskScore("uas")] + ([TaskScore("las")] if config.num_classes else [])

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        if config.problem_type == "multi_label":
            return ("(batch, length, length, num_classes)",) * 2
        if config.num_classes is None:
            return "(batch, length, 1 + length, 1)", "(batch, length)"
        return "(batch, length, 1 + length, 1 + num_classes)", "(batch, length, 2)"

    def decode(self, logits: Any) -> np.ndarray:
        """(batch, length, 2) head and relation of each token (-100: none); 0 or 1 for each relation of each pair."""
        if self.pairs:
            return (np.asarray(ops.convert_to_numpy(logits)) > 0).astype("int32")
        if self.config.tree:
            return best_trees(ops.convert_to_numpy(logits))
        return np.asarray(ops.convert_to_numpy(best_arcs(logits)))
