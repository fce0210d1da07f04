"""What a layer does with its tokens, as arrays and pictures: hidden attention, memory, states; and how training went.

The functions that compute return NumPy arrays and need no plotting library. Those called `plot_...` draw such an array
and return the matplotlib axes; matplotlib is imported when one of them is called (`pip install "dl-mamba[plots]"`).
"""

from dl_mamba.viz.attention import attend, hidden_attention
from dl_mamba.viz.memory import decays, retention, state_norms, states, step_sizes
from dl_mamba.viz.plots import (
    confusion_counts,
    plot_attention,
    plot_confusion_matrix,
    plot_learning_curve,
    plot_state_norms,
    plot_token_map,
)

__all__ = [
    "attend",
    "confusion_counts",
    "decays",
    "hidden_attention",
    "plot_attention",
    "plot_confusion_matrix",
    "plot_learning_curve",
    "plot_state_norms",
    "plot_token_map",
    "retention",
    "state_norms",
    "states",
    "step_sizes",
]
