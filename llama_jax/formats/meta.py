"""Meta's release: consolidated.*.pth in 1, 2, 4 or 8 shards, params.json, tokenizer.model."""

from pathlib import Path

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import pth
from llama_jax.formats.weights import (
    HEAD,
    QUERY,
    Checkpoint,
    Place,
    Source,
    cast,
    check_divisor,
    check_tensors,
    from_pairs,
    names_in,
    positive,
    read_if_there,
    read_json,
    shapes,
    to_pairs,
    write_json,
)

NAMES = {
    "embed_VD": "tok_embeddings.weight",
    "layers/attn_norm/scale_D": "layers.{}.attention_norm.weight",
    "layers/attn/wq_DGRK": "layers.{}.attention.wq.weight",
    "layers/attn/wk_DGK": "layers.{}.attention.wk.weight",
    "layers/attn/wv_DGK": "layers.{}.attention.wv.weight",
    "layers/attn/wo_GRKD": "layers.{}.attention.wo.weight",
    "layers/mlp_norm/scale_D": "layers.{}.ffn_norm.weight",
    "layers/mlp/w_gate_DF": "layers.{}.feed_forward.w1.weight",
    "layers/mlp/w_up_DF": "layers.{}.feed_forward.w3.weight",
    "layers/mlp/w_down_FD": "layers.{}.feed_forward.w2.weight",
    "final_norm/scale_D": "norm.weight",
    "lm_head_DV": "output.weight",
}
# The axis of [out, in] along which the shards of a model-parallel job split a matrix: what each
# of them computes alone. Norms are in every shard.
SPLIT_INPUTS = ("embed_VD", "layers/attn/wo_GRKD", "layers/mlp/w_down_FD")


def write(checkpoint: Checkpoint, out: Path, type: str, shards: int) -> None:
    """shards: 1 for 7B, 2, 4 and 8 for 13B, 33B and 65B in Meta's release. Raises UserError."""
    cfg = checkpoint.cfg
    for field, size in (
        ("num_kv_heads", cfg.kv_heads),
        ("mlp_dim", cfg.mlp_dim),
        ("vocab_size", cfg.vocab_size),
    ):
        if size % shards:
            raise UserError(f"--shards: got {shards}, expected a divisor of model.{field}={size}")
    all_shapes = shapes(cfg) | {HEAD: shapes(cfg)["embed_VD"]}
    names = names_in(NAMES, cfg) | {NAMES[HEAD]: Place(HEAD, None)}
    parts = {
        name: _part(all_shapes[place.name], place.name, shards) for name, place in names.items()
    }
    writers = [pth.Writer(out / f"consolidated.{i:02d}.pth", parts, type) for i in range(shards)]
    for name, place in names.items():
        tied = place.name == HEAD and cfg.tie_embeddings  # the format has no word for it
        matrix = checkpoint.matrix(Place("embed_VD", None) if tied else place)
        values = cast(to_pairs(matrix, place.name, cfg), type, place)
        for i, writer in enumerate(writers):
            writer.write(name, _shard(values, place.name, i, shards))
    for writer in writers:
        writer.close()
    write_json(out / "params.json", _params(cfg))
    (out / "tokenizer.model").write_bytes(checkpoint.tokenizer)


def _axis(name: str) -> int:
    return 1 if name in SPLIT_INPUTS else 0


def _part(shape: tuple[int, ...], name: str, shards: int) -> tuple[int, ...]:
    """The shape of a matrix in one of the shards. Raises UserError if it cannot be split so."""
    if len(shape) == 1:
        return shape
    part = list(shape)
    part[_axis(name)] //= shards
    return tuple(part)


def _shard(values: np.ndarray, name: str, i: int, shards: int) -> np.ndarray:
    return values if values.ndim == 1 else np.split(values, shards, _axis(name))[i]


def _params(cfg: ModelConfig) -> dict:
    """params.json, from which Meta's code has to find the width of the SwiGLU by its own rule:
    2/3 of 4 * dim, times ffn_dim_multiplier if there is one, rounded up to a multiple_of."""
    plain = 8 * cfg.embed_dim // 3
    fits = [m for m in range(256, 0, -1) if -(-plain // m) * m == cfg.mlp_dim]
    width: dict = {"multiple_of": fits[0] if fits else 1}
    if not fits:  # half a unit more, because the product is cut to an integer
        width["ffn_dim_multiplier"] = (cfg.mlp_dim + 0.5) / plain
    grouped = {} if cfg.kv_heads == cfg.num_heads else {"n_kv_heads": cfg.kv_heads}
    theta = {} if cfg.rope_theta == 10_000.0 else {"rope_theta": cfg.rope_theta}
    return {
        "dim": cfg.embed_dim,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.num_heads,
        **grouped,
        "vocab_size": cfg.vocab_size,
        **width,
        "norm_eps": cfg.norm_eps,
        **theta,
    }


def read(directory: Path) -> Source:
    """Of any number of shards. Raises UserError for what is damaged, missing or no LLaMA."""
    file = directory / "params.json"
    params = read_json(file)
    dim, heads = (positive(int, file, field, params.get(field)) for field in ("dim", "n_heads"))
    kv_heads = positive(int, file, "n_kv_heads", params.get("n_kv_heads") or heads)
    if params.get("use_scaled_rope"):
        raise UserError(f"{file}: use_scaled_rope is true, and llama_jax knows false only")
    check_divisor(file, "n_heads", heads, "dim", dim)
    check_divisor(file, "n_kv_heads", kv_heads, "n_heads", heads)
    files = _files(directory)
    found = [pth.read(path) for path in files]
    first = found[0]
    gate, query, embedding = (
        NAMES[name].format(0) for name in ("layers/mlp/w_gate_DF", QUERY, "embed_VD")
    )
    for name in (gate, query, embedding):
        if name not in first or len(first[name].shape) != 2:
            raise UserError(f"{files[0]}: has no matrix {name}, which every LLaMA has")
    if first[query].shape[0] * len(files) != dim:
        raise UserError(
            f"{directory}: has {len(files)} shards, but tensor {query} of {files[0].name} has "
            f"{first[query].shape[0]} of {dim} rows; consolidated.{len(files):02d}.pth is missing"
        )
    cfg = ModelConfig(
        num_layers=positive(int, file, "n_layers", params.get("n_layers")),
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_dim_override=first[gate].shape[0] * len(files),
        vocab_size=first[embedding].shape[0],
        norm_eps=positive(float, file, "norm_eps", params.get("norm_eps")),
        rope_theta=positive(float, file, "rope_theta", params.get("rope_theta", 10_000.0)),
    )
    names = names_in(NAMES, cfg)
    for path, shard in zip(files, found, strict=True):
        expected = {
            name: _part(shapes(cfg)[place.name], place.name, len(files))
            for name, place in names.items()
        }
        check_tensors({k: (path, t.shape) for k, t in shard.items()}, expected, ["rope.freqs"])

    def matrix(place: Place) -> np.ndarray:
        name = NAMES[place.name].format(place.layer)
        shards = [shard[name].read() for shard in found]
        whole = shards[0] if shards[0].ndim == 1 else np.concatenate(shards, _axis(place.name))
        return from_pairs(whole, place.name, cfg)

    return Source(
        cfg=cfg,
        seq_len=2048,  # the format does not say
        type=first[embedding].type,
        tokenizer=lambda: read_if_there(directory / "tokenizer.model"),
        matrix=matrix,
        where=lambda place: f"{directory}: tensor {NAMES[place.name].format(place.layer)}",
    )


def _files(directory: Path) -> list[Path]:
    """The shards there are, in order. Raises UserError if one before the last is missing."""
    files = sorted(directory.glob("consolidated.*.pth"))
    for i, file in enumerate(files):
        expected = directory / f"consolidated.{i:02d}.pth"
        if file != expected:
            raise UserError(f"{expected}: is missing, but {file.name} is there")
    if not files:
        raise UserError(f"{directory / 'consolidated.00.pth'}: is missing")
    return files
