"""Meta's release: consolidated.*.pth in 1, 2, 4 or 8 shards, params.json, tokenizer.model."""

from pathlib import Path

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import pth
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    DTYPES,
    Parameter,
    cast,
    deinterleave_rope,
    interleave_rope,
    name_in,
    names_in,
    parameters,
    shapes,
)
from llama_jax.formats.proofs import meta as proof
from llama_jax.formats.weights import (
    Weights,
    check_divisor,
    check_tensors,
    positive,
    printable,
    read_if_there,
    read_json,
    write_json,
)

NAMES = {
    "embedding": "tok_embeddings.weight",
    "attn_norm": "layers.{}.attention_norm.weight",
    "q": "layers.{}.attention.wq.weight",
    "k": "layers.{}.attention.wk.weight",
    "v": "layers.{}.attention.wv.weight",
    "o": "layers.{}.attention.wo.weight",
    "mlp_norm": "layers.{}.ffn_norm.weight",
    "gate": "layers.{}.feed_forward.w1.weight",
    "up": "layers.{}.feed_forward.w3.weight",
    "down": "layers.{}.feed_forward.w2.weight",
    "final_norm": "norm.weight",
    "head": "output.weight",
}
FIELDS = {  # of params.json, all that Meta's code takes
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"),
    *("ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope"),
    *("max_batch_size", "max_seq_len"),
}
# The axis of [out, in] along which the shards of a model-parallel job split a matrix: what each
# of them computes alone. Norms are in every shard.
SPLIT_INPUTS = ("embedding", "o", "down")


def write(weights: Weights, out: Path, dtype: str, shards: int) -> None:
    """Write a release into the directory `out`. Raise UserError.

    shards: 1 for 7B, 2, 4 and 8 for 13B, 33B and 65B in Meta's own.
    """
    cfg = weights.cfg
    for field, size in (
        ("num_kv_heads", cfg.kv_heads),
        ("mlp_dim", cfg.mlp_dim),
        ("vocab_size", cfg.vocab_size),
    ):
        if size % shards:
            raise UserError(f"--shards: got {shards}, expected a divisor of model.{field}={size}")
    if weights.sentencepiece is None:
        raise UserError(
            f"--to: meta's tokenizer.model is SentencePiece's, and {weights.name} has a "
            "tokenizer.json; expected hf, gguf or litgpt"
        )
    all_shapes = shapes(cfg) | {"head": shapes(cfg)["embedding"]}
    names = names_in(NAMES, cfg) | {NAMES["head"]: Parameter("head")}
    parts = {
        name: _part(all_shapes[parameter.role], parameter.role, shards)
        for name, parameter in names.items()
    }
    writers = [pth.Writer(out / f"consolidated.{i:02d}.pth", parts, dtype) for i in range(shards)]
    for name, parameter in names.items():
        tied = parameter.role == "head" and cfg.tie_embeddings  # the format has no word for it
        matrix = weights.matrix(Parameter("embedding") if tied else parameter)
        values = cast(interleave_rope(matrix, parameter.role, cfg), dtype, parameter)
        for i, writer in enumerate(writers):
            writer.write(name, _shard(values, parameter.role, i, shards))
    for writer in writers:
        writer.close()
    write_json(out / "params.json", _params(cfg))
    assert weights.tokenizer
    (out / "tokenizer.model").write_bytes(weights.tokenizer)


def _axis(role: str) -> int:
    return 1 if role in SPLIT_INPUTS else 0


def _part(shape: tuple[int, ...], role: str, shards: int) -> tuple[int, ...]:
    """Return the shape of a matrix in one of the shards."""
    if len(shape) == 1:
        return shape
    part = list(shape)
    part[_axis(role)] //= shards
    return tuple(part)


def _shard(values: np.ndarray, role: str, i: int, shards: int) -> np.ndarray:
    return values if values.ndim == 1 else np.split(values, shards, _axis(role))[i]


def _params(cfg: ModelConfig) -> dict:
    """Return params.json, from which Meta's code finds the width of the SwiGLU by its own rule:
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


def is_it(path: Path) -> bool:
    return (path / "params.json").exists()


def read(directory: Path) -> Weights:
    """Open a model of any number of shards. Raise UserError for what is damaged, missing or no
    LLaMA."""
    file = directory / "params.json"
    params = read_json(file)
    dim, heads = (positive(int, file, field, params.get(field)) for field in ("dim", "n_heads"))
    kv_heads = positive(int, file, "n_kv_heads", params.get("n_kv_heads") or heads)
    for field in params.keys() - FIELDS:
        raise UserError(f"{file}: {field} is of no LLaMA that llama_jax knows")
    if params.get("use_scaled_rope"):
        raise UserError(f"{file}: use_scaled_rope is true, and llama_jax knows false only")
    check_divisor(file, "n_heads", heads, "dim", dim)
    check_divisor(file, "n_kv_heads", kv_heads, "n_heads", heads)
    files = _files(directory)
    found = [pth.read(path) for path in files]
    first = found[0]
    gate, query, embedding = (
        name_in(NAMES, Parameter(role, 0)) for role in ("gate", "q", "embedding")
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
    if (rows := params.get("vocab_size", -1)) not in (-1, cfg.vocab_size):
        raise UserError(
            f"{file}: vocab_size is {printable(rows)}, and tensor {embedding} has {cfg.vocab_size} "
            "rows"
        )
    parts = {role: _part(shape, role, len(files)) for role, shape in shapes(cfg).items()}
    for path, shard in zip(files, found, strict=True):
        expected = ((name_in(NAMES, p), parts[p.role]) for p in parameters(cfg))
        stored = {name: (path, tensor.shape) for name, tensor in shard.items()}
        check_tensors(path, stored, expected, ["rope.freqs"])

    def matrix(parameter: Parameter) -> np.ndarray:
        name = name_in(NAMES, parameter)
        shards = [shard[name].read() for shard in found]
        if shards[0].ndim > 1:
            whole = np.concatenate(shards, _axis(parameter.role))
            return deinterleave_rope(whole, parameter.role, cfg)
        for path, values in zip(files, shards, strict=True):
            if not np.array_equal(values, shards[0], equal_nan=True):
                raise UserError(f"{path}: tensor {name} is not the same as in {files[0].name}")
        return shards[0]

    return Weights(
        name=directory.name,
        cfg=cfg,
        seq_len=2048,  # the format does not say
        dtype=first[embedding].dtype,
        matrix=matrix,
        where=lambda parameter: f"{directory}: tensor {name_in(NAMES, parameter)}",
        read_tokenizer=lambda: read_if_there(directory / "tokenizer.model"),
        provenance={"source": str(directory)},
    )


def _files(directory: Path) -> list[Path]:
    """Return the shards there are, in order. Raise UserError if one before the last is missing."""
    files = sorted(directory.glob("consolidated.*.pth"))
    for i, file in enumerate(files):
        expected = directory / f"consolidated.{i:02d}.pth"
        if file != expected:
            raise UserError(f"{expected}: is missing, but {file.name} is there")
    if not files:
        raise UserError(f"{directory / 'consolidated.00.pth'}: is missing")
    return files


FORMAT = Format(
    is_it=is_it,
    read=read,
    write=write,
    dtypes=tuple(DTYPES),
    options={"shards": 1},
    open_files=proof.open_files,
)
