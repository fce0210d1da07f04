"""The loop over new tokens: feed the last one, choose the next; `BLOCK` of them in one call of a compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.cuda_graph import CudaGraph
from dl_mamba.generation.programs import Programs
from dl_mamba.generation.prompts import chunks
from dl_mamba.generation.recording import Recording
from dl_mamba.generation.samplers import Carry, Sampler
from dl_mamba.layers import one_token
from dl_mamba.layers.mixer import MixerState

BLOCK = 256  # tokens
PREFILL_CHUNK = 512  # tokens
RECORD_FROM = 8  # tokens asked for, from which on a recording on torch costs no request more than it saves


class Memory(NamedTuple):
    """What a model remembers of the tokens it has read: constant in size, whatever their number.

    Attributes:
        state: the model's state, nested tensors with the batch first.
        logits: (batch, vocab_size) float32, of the token that comes next.

    Example:

    >>> import numpy as np, dl_mamba
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    >>> document = model.prefill(np.array([[3, 1, 4, 1, 5]]))
    >>> tuple(document.logits.shape)
    (1, 11)
    """

    state: Any
    logits: Any


def read(model: keras.Model, ids: np.ndarray, mask: np.ndarray, state: Any, chunk: int = PREFILL_CHUNK) -> Memory:
    """The memory behind packed rows, read piece by piece, so that memory does not grow with their length."""
    program = Programs.of(model).compiled("prefill", model.next_logits)
    state = model.initial_state(len(ids)) if state is None else state
    logits = None
    for piece, real in chunks(ids, mask, chunk, keras.backend.backend() != "torch"):
        real = None if real is None else ops.convert_to_tensor(real)
        logits, state = program(ops.convert_to_tensor(piece), real, state)
    return Memory(state, logits)


class Decoding:
    """Rows that grow token by token.

    Args:
        model: has `next_logits` and a state.
        sampler: one of ours.
        memory: of the prompts, one row for each of the sampler's.
        seen: (rows, vocab_size) bool, the tokens that stand in the prompts, if the sampler needs it.
        end: ids that end a row.
        pad: what follows them.
        seed: of the draws.
        keep: whether the memory is wanted afterwards: that of a row stays as it is once the row has ended.
        state_dtype: of the recurrent states between tokens.
        expected: how many tokens will be taken in all.
    """

    def __init__(
        self,
        model: keras.Model,
        sampler: Sampler,
        memory: Memory,
        *,
        seen: np.ndarray | None,
        end: Sequence[int],
        pad: int,
        seed: int | None,
        keep: bool,
        state_dtype: str,
        expected: int,
    ) -> None:
        self._model, self._sampler, self._keep, self._ends = model, sampler, keep, bool(end)
        self._programs = Programs.of(model)
        self._random = np.random.default_rng(seed)
        self._rows = rows = memory.logits.shape[0]
        numbers = {name: np.array(value, "float32") for name, value in sampler.numbers().items()}
        numbers |= {"end": np.array(list(end) or [-1], "int32"), "pad": np.array(pad, "int32")}
        self._numbers = {name: _argument(value) for name, value in numbers.items()}
        state = memory.state
        if {*map(keras.backend.standardize_dtype, _recurrent_dtypes(state))} - {state_dtype}:
            converted = partial(_with_recurrent_states_in, state_dtype)
            state = self._programs.compiled(("states", state_dtype), converted, weights=False)(state)
        self._carry: Carry = {"done": _argument(np.zeros(rows, bool)), "state": state, **sampler.start(rows)}
        if sampler.needs_seen:
            self._carry["seen"] = _argument(seen)
        if keep:
            self._carry["logits"] = memory.logits
        self._logits = memory.logits
        self._advance = partial(_advance, model, sampler, keep)
        self._recorded = keras.backend.backend() == "torch" and expected >= RECORD_FROM

    @property
    def carry(self) -> Carry:
        """What goes from token to token: see `Sampler.choose`."""
        return self._carry

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return self._ends and bool(ops.all(self._carry["done"]))

    def end_rows(self, rows: np.ndarray) -> None:
        """Let rows end here: `rows` (rows,) bool."""
        self._carry["done"] = ops.logical_or(self._carry["done"], ops.convert_to_tensor(rows))
        self._ends = True

    def take(self, count: int) -> dict[str, np.ndarray]:
        """The next `count` tokens, or fewer if every row ends before.

        Returns:
            What the sampler wrote down, each (taken, rows) int32.
        """
        draws = self._random.random((count, self._rows, 2)).astype("float32")
        first, written = None, []
        if self._logits is not None:
            choose = self._programs.compiled(("choose", self._sampler.key), self._sampler.choose, weights=False)
            # the rows of a prompt are alike still, so that no choice between them changes what they remember
            memory = {name: self._carry[name] for name in ("state", "logits") if name in self._carry}
            given = {name: value for name, value in self._carry.items() if name not in memory}
            chosen, first = choose(self._logits, given, self._numbers, _argument(draws[0]))
            self._carry = {**chosen, **memory}
            self._logits, draws = None, draws[1:]
        block = self._block_of_torch if keras.backend.backend() == "torch" else self._block
        for start in range(0, len(draws), BLOCK):
            if self.finished:
                break
            written.append(block(draws[start : start + BLOCK]))
        if first is not None:  # copied behind the others' start, not before it
            written.insert(0, {name: ops.convert_to_numpy(value)[None] for name, value in first.items()})
        return {name: np.concatenate([part[name] for part in written]) for name in written[0]}

    def memory(self) -> Memory:
        """The memory behind the last token of each row; only with `keep`."""
        return self._programs.compiled("settle", partial(_settled, self._model))(self._carry)

    def _block(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        count = np.array(len(draws), "int32")
        draws = np.pad(draws, [[0, BLOCK - len(draws)], [0, 0], [0, 0]])
        block = self._programs.compiled(("block", self._sampler.key, self._keep), partial(_block, self._advance))
        self._carry, written, taken = block(self._carry, self._numbers, draws, count)
        return {name: ops.convert_to_numpy(value)[: int(taken)] for name, value in written.items()}

    def _block_of_torch(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        draws, written = ops.convert_to_tensor(draws), []
        with torch.no_grad():
            if self._recorded:
                self._record(draws[0])
            for draw in draws.unbind():
                self._carry, emitted = self._advance(self._carry, self._numbers, draw)
                written.append(emitted)
                if self.finished:
                    break
            return {name: torch.stack([w[name] for w in written]).cpu().numpy() for name in written[0]}

    def _record(self, draw: Any) -> None:
        """Let a recording take the place of `_advance`."""
        self._recorded = False
        args = (self._carry, self._numbers, draw)
        shapes = tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in keras.tree.flatten(args))
        tensors = tuple(id(variable.value) for variable in self._programs.variables)
        key = ("step", self._sampler.key, self._keep, shapes, tensors)
        recording = self._programs.kept(key, lambda: Recording(self._advance, args, draw.is_cuda))
        weights = recording.weights()
        self._advance = partial(recording, weights)
        if draw.is_cuda:
            graph = self._programs.lent(self, key, lambda: CudaGraph(recording, weights, args))
            self._advance = graph.renew(weights)


def _argument(array: np.ndarray) -> Any:
    """What the compiled programs take: XLA's move the arrays of a call themselves, sooner than one after the other."""
    return ops.convert_to_tensor(array) if keras.backend.backend() == "torch" else array


def _recurrent_dtypes(state: Any) -> set[Any]:
    """The dtypes as the backend has them; `keras.tree` would take 40 times as long, at every request."""
    if isinstance(state, MixerState):
        return {state.ssm.dtype}
    if isinstance(state, dict | list | tuple):
        return set().union(*map(_recurrent_dtypes, state.values() if isinstance(state, dict) else state))
    return set()


def _with_recurrent_states_in(dtype: str, state: Any) -> Any:
    def changed(part: Any) -> MixerState | None:
        return MixerState(part.conv, ops.cast(part.ssm, dtype)) if isinstance(part, MixerState) else None

    return keras.tree.traverse(changed, state)


def _read_pending(model: keras.Model, keep: bool, carry: Carry) -> tuple[Any, Any]:
    """Logits and state behind the pending tokens; with `keep`, those of rows that had ended stay."""
    with one_token.fused():
        logits, state = model.next_logits(carry["token"][:, None], None, carry["state"])
    state = keras.tree.map_structure(lambda new, old: ops.cast(new, old.dtype), state, carry["state"])
    if not keep:
        return logits, state

    def chosen(new: Any, old: Any) -> Any:
        return ops.where(ops.reshape(carry["real"], (-1, *[1] * (len(new.shape) - 1))), new, old)

    return keras.tree.map_structure(chosen, (logits, state), (carry["logits"], carry["state"]))


def _settled(model: keras.Model, carry: Carry) -> Memory:
    logits, state = _read_pending(model, True, carry)
    return Memory(_with_recurrent_states_in("float32", state), logits)


def _advance(
    model: keras.Model, sampler: Sampler, keep: bool, carry: Carry, numbers: Carry, draw: Any
) -> tuple[Carry, Carry]:
    """One step: the model reads the pending tokens, the sampler chooses the next."""
    logits, state = _read_pending(model, keep, carry)
    return sampler.choose(logits, {**carry, "state": state, **({"logits": logits} if keep else {})}, numbers, draw)


def _block(advance: Callable, carry: Carry, numbers: Carry, draws: Any, count: Any) -> tuple[Carry, Carry, Any]:
    """`count` steps of at most `BLOCK`, with a stop where every row has ended: one loop of XLA."""
    names = ("token", "parent") if "score" in carry else ("token",)
    written = {name: ops.zeros((BLOCK, carry["token"].shape[0]), dtype="int32") for name in names}

    def more(i, carry, written):
        return ops.logical_and(i < count, ops.logical_not(ops.all(carry["done"])))

    def step(i, carry, written):
        carry, emitted = advance(carry, numbers, ops.take(draws, i, axis=0))
        return i + 1, carry, {name: ops.slice_update(written[name], (i, 0), emitted[name][None]) for name in names}

    taken, carry, written = ops.while_loop(more, step, (ops.zeros((), dtype="int32"), carry, written))
    return carry, written, taken
