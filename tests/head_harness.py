"""One small task of every type: its config, a batch of inputs, and labels that fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from model_harness import perturb, place, tokens

from dl_mamba.heads import TASKS, NLPTaskConfig, NLPTaskType, create_nlp_head

LENGTHS = (5, 3)
LENGTH = 6
VOCABULARY = 11
FIELDS = {
    "TokenClassificationHead": {"num_classes": 3},
    "SequenceClassificationHead": {"num_classes": 3},
    "SpanHead": {"max_length": 3},
    "PairHead": {},
    "MultipleChoiceHead": {},
    "CausalLMHead": {},
    "MaskedLMHead": {},
    "ArcHead": {"num_classes": 2, "hidden_size": 4},
}


def task_of(task_type: str, name: str = "task", **fields: Any) -> NLPTaskConfig:
    """A config with no more than the type needs."""
    task = TASKS[NLPTaskType(task_type)]
    own = dict(FIELDS[task.head.__name__])
    similar = fields.get("similarity", task.defaults.get("similarity", "learned"))
    problem = fields.get("problem_type", task.defaults.get("problem_type"))
    if task.head.__name__ == "PairHead":
        own["num_classes"] = 1 if problem == "regression" else 2 if similar != "learned" else 3
    elif problem == "regression":
        own.pop("num_classes", None)
    return NLPTaskConfig(name, task_type, **{**own, "dropout_rate": 0.0, **fields})


def inputs_of(task: NLPTaskConfig, side: str = "right", length: int = LENGTH) -> dict[str, np.ndarray]:
    """Token ids and masks of two rows, padded on one side."""

    def rows(prefix="", seed=0):
        ids, mask = place([tokens(n, seed=seed + n) for n in LENGTHS], length, side, filler=np.int32(0))
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask.astype("int32")}

    layout = task.head_class.layout(task)
    if layout == "pair":
        return {**rows(), **rows("pair_", seed=7)}
    if layout == "choices":
        choices = [rows(seed=seed) for seed in range(3)]
        stacked = {name: np.stack([choice[name] for choice in choices], axis=1) for name in choices[0]}
        stacked["attention_mask"][1, 2] = 0  # the second row has two choices
        return stacked
    inputs = rows()
    if layout == "segments":
        number = np.cumsum(inputs["attention_mask"], axis=1)
        inputs["token_type_ids"] = (number > 2).astype("int32")
    return inputs


def features_of(inputs: dict[str, np.ndarray], filler: float = 50.0, d_model: int = 8) -> dict[str, np.ndarray]:
    """What a head reads: a random row for each token id, `filler` at padding, and embeddings."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(VOCABULARY, d_model)).astype("float32")
    features = {"embeddings": rng.normal(size=(VOCABULARY + 1, d_model)).astype("float32")}
    for name, array in inputs.items():
        if not name.endswith("input_ids"):
            features[name] = array
            continue
        mask = inputs[name.replace("input_ids", "attention_mask")][..., None]
        features[name.replace("input_ids", "last_hidden_state")] = np.where(mask, table[array], np.float32(filler))
    return features


def head_of(task: NLPTaskConfig, **options: Any) -> Any:
    """A built, perturbed head without a backbone."""
    if "vocab_size" in task.head_class.fields:
        task = replace(task, vocab_size=VOCABULARY)
    head = create_nlp_head(task, **options)
    head.build({name: array.shape for name, array in features_of(inputs_of(task)).items()})
    return perturb(head)


def labels_of(task: NLPTaskConfig, inputs: dict[str, np.ndarray], seed: int = 0) -> np.ndarray:
    """Labels that fit, with the real tokens where the mask has them."""
    rng, mask = np.random.default_rng(seed), inputs["attention_mask"].astype(bool)
    kind, batch = task.head_class.make_loss(task).kind, len(mask)
    if kind in ("crf", "next_token") or (kind == "softmax" and "LM" in task.head_class.__name__):
        size = task.num_classes or VOCABULARY
        return np.where(mask, rng.integers(0, size, mask.shape), -100)
    if kind == "squared_error":
        return rng.normal(size=(batch, task.num_classes)).astype("float32")
    if kind == "listwise":
        return np.where(mask.any(-1), rng.random(mask.shape[:2]), np.nan).astype("float32")
    if kind == "span":
        places = [np.sort(rng.choice(np.flatnonzero(row), 2)) for row in mask]
        return np.stack(places)
    if kind == "arc":
        heads = [[rng.choice([0, *np.setdiff1d(np.flatnonzero(row), i) + 1]) for i in range(len(row))] for row in mask]
        pairs = np.stack([heads, rng.integers(0, task.num_classes or 1, mask.shape)], axis=-1)
        return np.where(mask[..., None], pairs, -100) if task.num_classes else np.where(mask, heads, -100)
    if kind == "sigmoid":
        shape = (batch, *mask.shape[1:] * 2) if task.head_class.__name__ == "ArcHead" else (batch,)
        return rng.integers(0, 2, (*shape, task.num_classes))
    if "Token" in task.head_class.__name__:
        return np.where(mask, rng.integers(0, task.num_classes, mask.shape), -100)
    return rng.integers(0, task.num_classes or 2, batch)
