"""The work of a torch module that follows the published layout, with our weights under its names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.case import Case
from benchmarks.contenders import Arrays, Work
from benchmarks.weights import cotangent, token_ids, value

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def work_of(case: Case, module: torch.nn.Module, hidden: Callable, our_name: Callable[[str], str]) -> Work:
    """Prepare a forward pass, or a forward and backward pass.

    Args:
        case: what is measured.
        module: takes (batch, length) token ids.
        hidden: picks the (batch, length, d_model) tensor from what the module returns.
        our_name: name of a parameter in this library.
    """
    load(module.to(DEVICE), our_name)
    parameters = dict(module.named_parameters())
    ids = torch.from_numpy(token_ids(case.batch, case.length, case.vocab_size)).long().to(DEVICE)
    if case.work == "forward":
        forward = torch.no_grad()(lambda: hidden(module(ids)))
        return Work(forward, lambda y: {"output": y.cpu().numpy()})
    weights = torch.from_numpy(cotangent((case.batch, case.length, case.d_model))).to(DEVICE)

    def gradient() -> Arrays:
        gradients = torch.autograd.grad((hidden(module(ids)) * weights).sum(), list(parameters.values()))
        return dict(zip(map(our_name, parameters), gradients, strict=True))

    def results(gradients: dict[str, torch.Tensor]) -> Arrays:
        kernels = {n: g.cpu().numpy() for n, g in gradients.items() if "kernel" in n}
        return {f"gradient of {n}": _as_ours(g) for n, g in kernels.items()}

    return Work(gradient, results)


def load(module: torch.nn.Module, our_name: Callable[[str], str]) -> None:
    """Give a module our weights."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(_as_torch(our_name(name), tuple(parameter.shape))))


def _as_torch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Our value of a parameter, in torch's layout: (out, in) for a projection, (channels, 1, d_conv) for conv1d."""
    if not name.endswith("kernel"):
        return value(name, shape)
    if len(shape) == 3:
        return value(name, (shape[2], shape[0])).T[:, None].copy()
    return value(name, shape[::-1]).T.copy()


def _as_ours(array: np.ndarray) -> np.ndarray:
    return (array[:, 0] if array.ndim == 3 else array).T


def our_mixer_name(name: str) -> str:
    """`"3.mixer.in_proj.weight"` -> `"layers/3/mixer/in_proj/kernel"`."""
    layer, _, rest = name.partition(".")
    rest = rest.replace("dt_proj.bias", "dt_bias").replace("norm.weight", "norm.scale").replace("weight", "kernel")
    return f"layers/{layer}/{rest.replace('.', '/')}"
