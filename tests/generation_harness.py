"""Small language models that the tests of generation share."""

import functools

from harness import numpy
from keras import ops
from model_harness import SMALL_MODEL, perturb, tokens

import dl_mamba
from dl_mamba.generation.programs import Programs
from dl_mamba.tokenizers import ByteTokenizer

MODELS = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}

PROMPT = tokens(1, 5)


@functools.cache
def lm(family, **options):
    """A perturbed model; shared, so that its programs are compiled once."""
    return perturb(MODELS[family](**{**SMALL_MODEL[family], "num_layers": 1, **options}))


@functools.cache
def text_lm():
    model = perturb(dl_mamba.MambaCausalLM(vocab_size=256, d_model=8, num_layers=1, d_state=4, dt_rank=2), size=0.5)
    model.tokenizer = ByteTokenizer()
    return model


def full_logits(model, ids):
    """(batch, length, vocab_size), without cache."""
    program = Programs.of(model).compiled("full forward", lambda ids: model(ids)["logits"])
    return numpy(program(ops.convert_to_tensor(ids)))
