"""Fine-tuning, beside Keras' own `compile`, `fit` and callbacks."""

from dl_mamba.training.adapting import TrainableShare, enable_lora, freeze, merge_lora
from dl_mamba.training.recipe import LayerwiseAdamW, recipe
from dl_mamba.training.resume import Resume

__all__ = ["LayerwiseAdamW", "Resume", "TrainableShare", "enable_lora", "freeze", "merge_lora", "recipe"]
