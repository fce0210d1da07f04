"""Models whose first step on TensorFlow is traced once."""

from __future__ import annotations

from typing import Any

import keras


class OptimizerFirst:
    """Mixin of a `keras.Model` that is compiled with an optimizer, which has its variables before the first step.

    Keras on TensorFlow would make them while it traces the step, and `tf.function` traces a function again that made
    variables: most of the time of a deep model's first step. On JAX and torch Keras makes them first by itself.
    """

    def make_train_function(self, force: bool = False) -> Any:
        optimizer = self.optimizer
        if keras.backend.backend() == "tensorflow" and optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)
        return super().make_train_function(force)
