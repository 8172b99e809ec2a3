"""litgpt's checkpoint directory: lit_model.pth, model_config.yaml and Hugging Face's tokenizer."""

from pathlib import Path

import numpy as np
import yaml

from llama_jax.formats import hf, pth
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import DTYPES, Parameter, cast, name_in, parameters, shapes
from llama_jax.formats.proofs import litgpt as proof
from llama_jax.formats.weights import Weights

# Queries, keys and values are the rows of one matrix, in Hugging Face's rotary layout.
NAMES = {
    "embedding": "transformer.wte.weight",
    "attn_norm": "transformer.h.{}.norm_1.weight",
    "q": "transformer.h.{}.attn.qkv.weight",
    "k": "transformer.h.{}.attn.qkv.weight",
    "v": "transformer.h.{}.attn.qkv.weight",
    "o": "transformer.h.{}.attn.proj.weight",
    "mlp_norm": "transformer.h.{}.norm_2.weight",
    "gate": "transformer.h.{}.mlp.fc_1.weight",
    "up": "transformer.h.{}.mlp.fc_2.weight",
    "down": "transformer.h.{}.mlp.proj.weight",
    "final_norm": "transformer.ln_f.weight",
    "head": "lm_head.weight",
}


def write(weights: Weights, out: Path, dtype: str) -> None:
    """Write what litgpt's GPT and Tokenizer load into the directory `out`."""
    cfg = weights.cfg
    tensors: dict[str, list[Parameter]] = {}  # their name -> the matrices it joins
    for parameter in parameters(cfg):
        tensors.setdefault(name_in(NAMES, parameter), []).append(parameter)
    if cfg.tie_embeddings:  # the format has no word for it
        tensors[NAMES["head"]] = [Parameter("embedding")]

    def shape(joined: list[Parameter]) -> tuple[int, ...]:
        parts = [shapes(cfg)[parameter.role] for parameter in joined]
        return (sum(part[0] for part in parts), *parts[0][1:])

    writer = pth.Writer(out / "lit_model.pth", {k: shape(v) for k, v in tensors.items()}, dtype)
    for name, joined in tensors.items():
        parts = [cast(weights.matrix(parameter), dtype, parameter) for parameter in joined]
        writer.write(name, np.concatenate(parts))
    writer.close()
    hf.write_config(weights, out, dtype)  # its tokenizer reads the special ids here
    hf.write_tokenizer(weights, out)
    (out / "model_config.yaml").write_text(yaml.safe_dump(_config(weights), sort_keys=False))


def _config(weights: Weights) -> dict:
    """Return the fields of litgpt.Config."""
    cfg = weights.cfg
    theta = int(cfg.rope_theta) if cfg.rope_theta.is_integer() else cfg.rope_theta
    return {
        "name": f"llama_jax-{weights.name}",
        "block_size": weights.seq_len,
        "vocab_size": cfg.vocab_size,
        "padded_vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "n_embd": cfg.embed_dim,
        "n_head": cfg.num_heads,
        "n_query_groups": cfg.kv_heads,
        "head_size": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "norm_class_name": "RMSNorm",
        "norm_eps": cfg.norm_eps,
        "mlp_class_name": "LLaMAMLP",
        "parallel_residual": False,
        "bias": False,
        "rotary_percentage": 1.0,
        "rope_base": theta,
    }


FORMAT = Format(write=write, dtypes=tuple(DTYPES), open_files=proof.open_files, client=("litgpt",))
