"""Whether exported files compute what they were made of.

One side is the training model itself, fed with the source; the other, the files as an independent
reader finds them: each tensor within what its type rounds, and all of them in a forward pass in
plain NumPy. Both go layer by layer, so that a model needs no more memory than one of its layers.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from llama_jax.config import MeshConfig, UserError
from llama_jax.data.tokenizer import MUST_SURVIVE
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import Parameter
from llama_jax.formats.proofs import client as clients
from llama_jax.formats.proofs import compare
from llama_jax.formats.proofs.compare import Figures
from llama_jax.formats.proofs.files import Inputs, Tensor, Unreadable
from llama_jax.formats.proofs.forward import logits_of_files
from llama_jax.formats.proofs.reference import logits_of_weights, prompts
from llama_jax.formats.weights import Weights
from llama_jax.progress import Meter
from llama_jax.sharding import make_mesh

# Of the logits' standard deviation: fp32 rounding is 3e-6 to 3e-5 of it in most models. In those
# where it is more, the limit is a multiple of what it does to the reading of the files.
TOLERANCE, TIMES_ROUNDING = 1e-4, 16
# Of what a client's rounding of activations does. Of four models in four types llama.cpp made 0.76
# to 1.12 times the largest difference that was foretold, and 0.90 to 1.08 times the KL divergence;
# of files without the Q/K permutation, 1.9 times and 25 times at the least.
TIMES_INPUTS = 3


def passes(dtype: str) -> int:
    """Return how often prove goes through all matrices, as far as its meter counts."""
    return 3 if dtype == "f32" else 4


@np.errstate(over="ignore", invalid="ignore")  # figures say what is not finite
def prove(
    source: Weights,
    directory: Path,
    form: Format,
    dtype: str,
    meter: Meter,
    client: clients.Client | None = None,
) -> dict:
    """Return what the manifest says of the verification of files of `source`.

    client: the program that is to load the files, too, once they are proven.
    """
    assert form.open_files
    cfg, texts = source.cfg, _texts(source, form)
    read = source.observed(lambda num_bytes: meter.add(num_bytes, "reading the checkpoint"))
    try:
        files = form.open_files(directory, read, dtype)
        wrong = compare.wrong_tensors(read, files, dtype)
        tokens = compare.wrong_tokens(source, files, texts)
    except UserError:  # of the source
        raise
    except Unreadable as e:
        return {"passed": False, "causes": [str(e)]}
    except Exception as e:  # a library has kinds of its own for what it cannot read
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        return {"passed": False, "causes": [f"the files cannot be read: {reason}"]}

    def tensor(role: str, layer: int) -> Tensor:
        found = files.tensor(role, layer)
        meter.add(4 * math.prod(found.shape), "computing the files' logits")
        return found

    def rounded(matrix: np.ndarray, parameter: Parameter) -> np.ndarray:
        return form.rounded(matrix, dtype, parameter, cfg)

    metered = dataclasses.replace(files, tensor=tensor)
    read = source.observed(
        lambda num_bytes: meter.add(num_bytes, "computing the checkpoint's logits")
    )
    tokens_BT = prompts(source)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices("cpu")[:1])):
        exact = logits_of_weights(read, tokens_BT, lambda matrix, _: matrix)
        reference = exact
        if dtype != "f32":
            reference = logits_of_weights(read, tokens_BT, rounded)
    rounding = compare.compare(reference, exact)
    del exact
    conventions = files.conventions
    logits = logits_of_files(metered, cfg, conventions, tokens_BT)

    def noise(inputs: Inputs | None) -> Figures:
        args = (metered, cfg, conventions, tokens_BT, np.float32)
        return compare.compare(logits_of_files(*args, inputs), logits)

    conversion = compare.compare(logits, reference)
    tolerance = _limits(conversion, noise)["max_rel"]
    close = compare.within(conversion, tolerance)
    causes = files.differences + tokens
    if not close and not causes and conversion["max_rel"] is not None:
        causes = compare.causes(metered, cfg, tokens_BT, reference, tolerance)
    verification = {
        "passed": close and not causes and not wrong,
        "tolerance": tolerance,
        "tokens": tokens_BT.size,
        "conversion": conversion,  # against the checkpoint's values as this type rounds them
        "rounding": rounding,  # what the type itself costs
        "causes": causes,
        "tensors": wrong,
        "texts": len(texts),  # that both tokenizers were given
    }
    if client and verification["passed"]:
        limits = partial(_limits, noise=noise, inputs=files.inputs)
        asked = clients.ask(client, source, directory, tokens_BT, texts, reference, limits)
        verification |= {"client": asked, "passed": not asked["causes"]}
    return verification


def _limits(
    figures: Figures, noise: Callable[[Inputs | None], Figures], inputs: Inputs | None = None
) -> dict[str, float]:
    """Return the most that some figures of logits may be.

    noise: of fp32 in the model, and of inputs where a program rounds them.
    """
    limit = TOLERANCE
    if compare.within(figures, limit):
        return {"max_rel": limit}
    rounding = noise(inputs)
    max_rel, kl = rounding["max_rel"] or 0.0, rounding["kl"] or 0.0
    if inputs is None:
        return {"max_rel": max(limit, TIMES_ROUNDING * max_rel)}
    times = TIMES_INPUTS  # its square for KL, which is quadratic in the differences
    return {"max_rel": max(limit, times * max_rel), "kl": max(limit**2, times**2 * kl)}


def loses_spaces(source: Weights, form: Format) -> bool:
    """Return whether the tokenizer removes extra spaces that the format's programs keep."""
    parsed = source.sentencepiece
    drops = parsed is not None and parsed.normalizer_spec.remove_extra_whitespaces
    return form.keeps_spaces and drops


def _texts(source: Weights, form: Format) -> list[str]:
    """Return those of which the files' tokenizer has to make the checkpoint's tokens."""
    if loses_spaces(source, form):
        return [without_extra_spaces(text) for text in MUST_SURVIVE]
    return list(MUST_SURVIVE)


def without_extra_spaces(text: str) -> str:
    return " ".join(filter(None, text.split(" ")))
