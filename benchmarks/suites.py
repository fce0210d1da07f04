"""What is compared with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.case import Case

FAMILIES = ("mamba", "mamba2")
LENGTHS = (512, 2048)


@dataclass(frozen=True)
class Comparison:
    """Cases of one size.

    Attributes:
        title: heading of the table.
        cases: contenders; results are compared with those of the first.
        against: contenders that get a column with their time divided by that of the row.
        growing: one of several that differ in length alone.
    """

    title: str
    cases: tuple[Case, ...]
    against: tuple[str, ...]
    growing: bool = False


def _comparison(
    size: dict, ours: Sequence[str], each: Sequence[str] = (), torch: Sequence[str] = (), revision: str = ""
) -> Comparison:
    """Ours on the given backends, `each` peers on the same backends, and peers that know torch only."""
    cases = [Case("ours", backend, **size) for backend in ours]
    cases += [Case("ours", backend, revision=revision, **size) for backend in ours if revision]
    cases += [Case(peer, backend, **size) for peer in each for backend in ours]
    cases += [Case(peer, "torch", **size) for peer in torch]
    earlier = (f"ours at {revision}",) if revision else ()
    return Comparison(cases[0].size, tuple(cases), (*torch, *each, *earlier))


OPS = {
    "selective_scan": ("mamba", ["mambapy", "mamba_ssm"]),
    "ssd": ("mamba2", ["torch_op", "mamba_ssm"]),
    "causal_conv1d": ("mamba2", ["torch_op"]),
    "gated_rms_norm": ("mamba2", ["torch_op"]),
}


def ops(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """Each op alone, at the sizes of one layer."""
    for op, (family, peers) in OPS.items():
        for work in ("forward", "gradient"):
            for length in LENGTHS:
                size = {"op": op, "family": family, "work": work, "length": length}
                yield _comparison(size, backends, (), peers, revision)


def model(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """Forward pass of 4 layers, d_model 768: against transformers and against the projections alone."""
    for family in FAMILIES:
        for length in LENGTHS:
            size = {"family": family, "work": "forward", "length": length}
            yield _comparison(size, backends, ["projections"], ["transformers"], revision)


def train(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """Forward and backward pass, and an epoch of a tiny classifier."""
    for family in FAMILIES:
        for length in LENGTHS:
            size = {"family": family, "work": "gradient", "length": length}
            found = _comparison(size, backends, ["projections"], _torch_peers(family, length), revision)
            lean = [Case("checkpointed", backend, **size) for backend in backends]
            lean += [Case("scanned", backend, **size) for backend in _compiling(backends)]
            yield replace(found, cases=(*found.cases, *lean))
    for family in FAMILIES:
        tiny = {"d_model": 64, "num_layers": 2, "variant": "tiny", "vocab_size": 256}
        size = {"family": family, "work": "epoch", "batch": 32, "length": 128, **tiny}
        yield _comparison(size, backends, ["lstm", "attention"], revision=revision)


def _torch_peers(family: str, length: int) -> list[str]:
    if family == "mamba2":
        return ["transformers"]
    # the backward pass of transformers is quadratic in length: 3 minutes at 512 tokens, an hour at 2,048
    return ["unrolled", "mambapy", *(["transformers"] if length <= LENGTHS[0] else [])]


def decode(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """One more token from a state."""
    for family in FAMILIES:
        yield _comparison({"family": family, "work": "token"}, backends, (), ["transformers"], revision)


def generate(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """64 tokens after a prompt of 16, 130m shape: against transformers with its cache, and the bandwidth of memory."""
    for family in FAMILIES:
        size = {"family": family, "work": "generate", "length": 16, "num_layers": 24, "vocab_size": 50280}
        yield _comparison(size, backends, (), ["transformers", "bandwidth"], revision)


def scaling(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """Time and memory of a forward pass against length, and of a million tokens piece by piece."""
    small = {"d_model": 256, "num_layers": 2}
    for family in FAMILIES:
        for length in (1024, 4096, 16384, 65536):
            size = {"family": family, "work": "forward", "length": length, **small}
            yield replace(_comparison(size, backends, revision=revision), growing=True)
    for family in FAMILIES:
        yield _comparison({"family": family, "work": "stream", "length": 2**20, **small}, backends, revision=revision)


def compilation(backends: Sequence[str], revision: str) -> Iterator[Comparison]:
    """The first training step of deep models, compilation included; torch compiles nothing."""
    compiling = _compiling(backends)
    for layers in (24, 48) if compiling else ():
        for family in reversed(FAMILIES):
            size = {"family": family, "work": "step", "batch": 2, "length": 256, "num_layers": layers}
            found = _comparison(size, compiling, revision=revision)
            yield replace(found, cases=(*found.cases, *(Case("scanned", backend, **size) for backend in compiling)))


def _compiling(backends: Sequence[str]) -> list[str]:
    return [backend for backend in backends if backend != "torch"]


SUITES: dict[str, Callable[[Sequence[str], str], Iterator[Comparison]]] = {
    "ops": ops,
    "model": model,
    "train": train,
    "decode": decode,
    "generate": generate,
    "scaling": scaling,
    "compile": compilation,
}
