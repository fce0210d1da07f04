"""Pure functions on tensors: the state-space recurrences and what stands around them.

Each op has a `reference` (its definition, token by token) and a portable `chunked` program in keras.ops.

Letters, as in the papers and the official code:

    x   input of the state space, (batch, length, d_inner) or (batch, length, nheads, headdim)
    dt  step size of the discretisation, softplus(dt + dt_bias) inside the ops
    A   decay rate, -exp(A_log); one number for each channel and state (Mamba-1), or for each head (Mamba-2)
    B   what a token writes into the state;  C  what it reads;  both (batch, length, ngroups, d_state)
    D   skip connection;  z  gate;  h  hidden state
"""

from dl_mamba.ops.causal_conv1d import causal_conv1d
from dl_mamba.ops.dispatch import implementation_scope, last_implementation
from dl_mamba.ops.gated_rms_norm import gated_rms_norm
from dl_mamba.ops.selective_scan import selective_scan
from dl_mamba.ops.ssd import ssd

__all__ = [
    "causal_conv1d",
    "gated_rms_norm",
    "implementation_scope",
    "last_implementation",
    "selective_scan",
    "ssd",
]
