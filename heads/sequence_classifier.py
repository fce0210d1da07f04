"""Numbers in, class out: sequences of measurements, with their normalisation inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.factory import create_nlp_head
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.layers import Mamba2ResidualBlock, MambaResidualBlock, RMSNorm

BLOCKS = {"mamba": MambaResidualBlock, "mamba2": Mamba2ResidualBlock}


@keras.saving.register_keras_serializable(package="dl_mamba")
class SequenceNormalization(keras.layers.Layer):
    """Steps of numbers, shifted and scaled by the statistics of the training data; NaN means missing.

    A step whose features are all NaN (or infinite) is padding. One missing feature in a real step becomes the mean.

    Args:
        mean, scale: one number a feature, as `SequenceNormalization.statistics` gives them.
        **kwargs: `name`, `dtype` of a Keras layer.

    Call arguments:
        values: (batch, length, features) float.

    Returns:
        `{"values": (batch, length, features) in the compute dtype, "attention_mask": (batch, length) int32}`.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.sequence_classifier import SequenceNormalization
    >>> layer = SequenceNormalization(mean=[1.0], scale=[2.0])
    >>> out = layer(np.array([[[3.0], [5.0], [np.nan]]], "float32"))
    >>> np.asarray(out["values"])[0, :, 0].tolist(), np.asarray(out["attention_mask"]).tolist()
    ([1.0, 2.0, 0.0], [[1, 1, 0]])
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if len(mean) != len(scale) or not len(mean):
            raise ValueError(f"mean has {len(mean)} numbers and scale {len(scale)}; each needs one a feature.")
        self.mean = [float(value) for value in mean]
        self.scale = [float(value) for value in scale]

    @staticmethod
    def statistics(rows: Sequence[np.ndarray]) -> dict[str, list[float]]:
        """Mean and standard deviation of each feature over all real steps; a constant feature is scaled by 1.

        Args:
            rows: one (length, features) array a row.

        Returns:
            `mean` and `scale`, the arguments of this layer.

        Example:

        >>> import numpy as np
        >>> from dl_mamba.heads.sequence_classifier import SequenceNormalization
        >>> SequenceNormalization.statistics([np.array([[1.0], [np.nan]]), np.array([[3.0]])])
        {'mean': [2.0], 'scale': [1.0]}
        """
        steps = np.concatenate([np.asarray(row, "float64") for row in rows])
        known = np.isfinite(steps)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, steps, 0).sum(0) / count
        scale = np.sqrt((np.where(known, steps - mean, 0) ** 2).sum(0) / count)
        return {"mean": mean.tolist(), "scale": np.where(scale > 0, scale, 1.0).tolist()}

    def call(self, values: Any) -> dict[str, Any]:
        values = ops.cast(values, "float32")  # sums and counts in the data do not fit into half precision
        known = ops.isfinite(values)
        mean = ops.convert_to_tensor(self.mean, dtype="float32")
        scale = ops.convert_to_tensor(self.scale, dtype="float32")
        values = (ops.where(known, values, mean) - mean) / scale
        return {"values": ops.cast(values, self.compute_dtype), "attention_mask": ops.cast(ops.any(known, -1), "int32")}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "scale": self.scale}


@keras.saving.register_keras_serializable(package="dl_mamba")
class SequenceClassifier(Classifier):
    """Sequences of numbers in, class out, with label names and normalisation in one `.keras` file.

    `fit`, `evaluate` and `predict` take a list of (length, features) or (length,) arrays of any lengths as well as one
    (batch, length, features) array in which NaN steps are padding. Labels may be class numbers or label names.

    Args:
        network: a functional model from (batch, length, features) to (batch, num_classes) logits, such as
            `create_sequence_classifier` makes.
        label_names: one name a class, in the order of the logits; None calls them "0", "1" and so on.
        **kwargs: `name`, `dtype`, `trainable` of a Keras model.

    Call arguments:
        inputs: (batch, length, features) float, NaN where nothing was measured.

    Returns:
        (batch, num_classes) logits.

    Raises:
        ValueError: the label names do not fit the number of classes.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.sequence_classifier import create_sequence_classifier
    >>> model = create_sequence_classifier([[0.0], [2.0]], ["low", "high"], d_model=8, headdim=4, d_state=4)
    >>> model.predict([np.zeros(3), np.ones(5)], verbose=0).shape
    (2, 2)
    """

    def is_raw(self, x: Any) -> bool:
        return isinstance(x, list | tuple)

    def rows(self, x: Any) -> list[np.ndarray]:
        rows = [np.asarray(row, "float32") for row in x]
        rows = [row[:, None] if row.ndim == 1 else row for row in rows]
        features = self.network.input_shape[-1]
        for place, row in enumerate(rows):
            if row.ndim != 2 or row.shape[1] != features:
                raise ValueError(f"sequence {place} has shape {row.shape}; this model reads (length, {features}).")
        return rows

    def collate(self, rows: list[np.ndarray], length: int) -> np.ndarray:
        values = np.full((len(rows), length, rows[0].shape[1]), np.nan, "float32")
        for place, row in enumerate(rows):
            values[place, : len(row)] = row
        return values


def create_sequence_classifier(
    rows: Sequence[Any],
    label_names: Sequence[str],
    *,
    family: str = "mamba2",
    d_model: int = 64,
    num_layers: int = 2,
    pooling: str = "mean",
    dropout_rate: float = 0.0,
    **options: Any,
) -> SequenceClassifier:
    """A classifier of numeric sequences: normalisation, projection to `d_model`, residual blocks, norm, pooling head.

    Args:
        rows: the training sequences, (length, features) or (length,) each; they set the normalisation and nothing else.
        label_names: one name a class.
        family: `"mamba"` or `"mamba2"`.
        d_model: width between the blocks.
        num_layers: number of residual blocks.
        pooling: `"mean"`, `"last"`, `"max"` or `"attention"`.
        dropout_rate: before the logits and after each block, 0 <= rate < 1.
        **options: every option of `MambaResidualBlock` or `Mamba2ResidualBlock`.

    Returns:
        A `SequenceClassifier`.

    Raises:
        ValueError: an unknown family, or an option that does not fit.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.sequence_classifier import create_sequence_classifier
    >>> rows = [np.arange(5.0), np.arange(3.0)]
    >>> model = create_sequence_classifier(rows, ["up", "down"], family="mamba", d_model=8, num_layers=1)
    >>> tuple(model(np.zeros((2, 4, 1), "float32")).shape)
    (2, 2)
    """
    if family not in BLOCKS:
        raise ValueError(f"family={family!r} is unknown; choose 'mamba' or 'mamba2'.")
    rows = [np.reshape(row, (len(row), -1)) for row in rows]
    inputs = keras.Input((None, rows[0].shape[1]), name="values")
    steps = SequenceNormalization(**SequenceNormalization.statistics(rows), name="normalization")(inputs)
    mask = steps["attention_mask"]
    hidden = keras.layers.Dense(d_model, name="projection")(steps["values"])
    for index in range(num_layers):
        block = BLOCKS[family](d_model=d_model, num_layers=num_layers, **options, name=f"block_{index}")
        hidden = block(hidden, mask=mask)
        if dropout_rate:
            hidden = keras.layers.Dropout(dropout_rate, name=f"dropout_{index}")(hidden)
    hidden = RMSNorm(name="norm")(hidden)
    task = NLPTaskConfig(
        "label", "sequence_classification", len(label_names), dropout_rate=dropout_rate, pooling=pooling
    )
    logits = create_nlp_head(task)({"last_hidden_state": hidden, "attention_mask": mask})
    return SequenceClassifier(keras.Model(inputs, logits, name="network"), label_names)
