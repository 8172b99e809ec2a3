"""litgpt's checkpoint directory: lit_model.pth, model_config.yaml and Hugging Face's tokenizer."""

from pathlib import Path

import numpy as np
import yaml

from llama_jax.formats import hf, pth
from llama_jax.formats.weights import (
    EMBEDDING,
    HEAD,
    Checkpoint,
    Place,
    cast,
    places,
    shapes,
)

# Queries, keys and values are the rows of one matrix, in Hugging Face's rotary layout.
NAMES = {
    "embed_VD": "transformer.wte.weight",
    "layers/attn_norm/scale_D": "transformer.h.{}.norm_1.weight",
    "layers/attn/wq_DGRK": "transformer.h.{}.attn.qkv.weight",
    "layers/attn/wk_DGK": "transformer.h.{}.attn.qkv.weight",
    "layers/attn/wv_DGK": "transformer.h.{}.attn.qkv.weight",
    "layers/attn/wo_GRKD": "transformer.h.{}.attn.proj.weight",
    "layers/mlp_norm/scale_D": "transformer.h.{}.norm_2.weight",
    "layers/mlp/w_gate_DF": "transformer.h.{}.mlp.fc_1.weight",
    "layers/mlp/w_up_DF": "transformer.h.{}.mlp.fc_2.weight",
    "layers/mlp/w_down_FD": "transformer.h.{}.mlp.proj.weight",
    "final_norm/scale_D": "transformer.ln_f.weight",
    "lm_head_DV": "lm_head.weight",
}


def write(checkpoint: Checkpoint, out: Path, type: str) -> None:
    cfg = checkpoint.cfg
    tensors: dict[str, list[Place]] = {}  # their name -> the places it joins
    for place in places(cfg):
        tensors.setdefault(NAMES[place.name].format(place.layer), []).append(place)
    if cfg.tie_embeddings:  # the format has no word for it
        tensors[NAMES[HEAD]] = [Place(EMBEDDING, None)]

    def shape(joined: list[Place]) -> tuple[int, ...]:
        parts = [shapes(cfg)[place.name] for place in joined]
        return (sum(part[0] for part in parts), *parts[0][1:])

    writer = pth.Writer(out / "lit_model.pth", {k: shape(v) for k, v in tensors.items()}, type)
    for name, joined in tensors.items():
        parts = [cast(checkpoint.matrix(place), type, place) for place in joined]
        writer.write(name, np.concatenate(parts))
    writer.close()
    hf.write_config(checkpoint, out, type)  # its tokenizer reads the special ids here
    hf.write_tokenizer(checkpoint, out)
    (out / "model_config.yaml").write_text(yaml.safe_dump(_config(checkpoint), sort_keys=False))


def _config(checkpoint: Checkpoint) -> dict:
    """The fields of litgpt.Config."""
    cfg = checkpoint.cfg
    theta = int(cfg.rope_theta) if cfg.rope_theta.is_integer() else cfg.rope_theta
    return {
        "name": f"llama_jax-{checkpoint.workdir.name}",
        "block_size": checkpoint.experiment.data.seq_len,
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
