"""Hugging Face: sharded safetensors, config.json, tokenizer.json, for transformers 4 and 5."""

import math
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.data import tokenizer
from llama_jax.formats import bpe, safetensors, vocabulary
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    DTYPES,
    Parameter,
    cast,
    name_in,
    num_values,
    parameters,
    shapes,
)
from llama_jax.formats.proofs import hf as proof
from llama_jax.formats.weights import (
    StoredArray,
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
    "embedding": "model.embed_tokens.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write(weights: Weights, out: Path, dtype: str, shard_bytes: int) -> None:
    """Write everything from_pretrained() looks for into the directory `out`.

    shard_bytes: of a file at the most, or one tensor.
    """
    write_config(weights, out, dtype)
    write_tokenizer(weights, out)
    size = DTYPES[dtype].itemsize
    shards: list[list[Parameter]] = [[]]
    used = 0
    for parameter in parameters(weights.cfg):
        num_bytes = size * math.prod(shapes(weights.cfg)[parameter.role])
        if shards[-1] and used + num_bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(parameter)
        used += num_bytes
    files = {
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards)
    }
    if len(shards) == 1:
        files = {SINGLE: shards[0]}
    for name, shard in files.items():
        _write_shard(weights, out / name, dtype, shard)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": num_values(weights.cfg) * size},
            "weight_map": {name_in(NAMES, p): file for file, shard in files.items() for p in shard},
        }
        write_json(out / INDEX, index)


def _write_shard(weights: Weights, path: Path, dtype: str, shard: list[Parameter]) -> None:
    all_shapes = shapes(weights.cfg)
    safetensors.write(
        path,
        {name_in(NAMES, parameter): all_shapes[parameter.role] for parameter in shard},
        dtype,
        (cast(weights.matrix(parameter), dtype, parameter) for parameter in shard),
    )


def write_config(weights: Weights, out: Path, dtype: str) -> None:
    """Write config.json and generation_config.json."""
    cfg = weights.cfg
    torch_dtype = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype]
    eos_ids = weights.vocabulary.eos_ids
    special = {
        "bos_token_id": weights.vocabulary.bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": cfg.embed_dim,
        "intermediate_size": cfg.mlp_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": weights.seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_std,
        **special,
        # transformers 4 reads the first of each pair, 5 the second.
        **{"torch_dtype": torch_dtype, "dtype": torch_dtype},
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
    }
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", special)


def write_tokenizer(weights: Weights, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, and tokenizer.model if it is of that kind.

    The class is PreTrainedTokenizerFast because transformers 5's LlamaTokenizer puts a normalizer
    of its own in the parameter of tokenizer.json's, which gives other ids for leading spaces.
    """
    parsed = weights.sentencepiece
    assert weights.tokenizer
    if parsed is None:
        written, roles = bpe.without_roles(weights.tokenizer)
        special = {f"{role}_token": tokens[0]["content"] for role, tokens in roles.items()}
    else:
        (out / "tokenizer.model").write_bytes(weights.tokenizer)
        written, trainer = vocabulary.hugging_face(parsed), parsed.trainer_spec
        special = {
            "bos_token": parsed.pieces[trainer.bos_id].piece,
            "eos_token": parsed.pieces[trainer.eos_id].piece,
            "unk_token": parsed.pieces[trainer.unk_id].piece,
        }
    write_json(out / "tokenizer.json", written)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": weights.seq_len,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", config)


def is_it(path: Path) -> bool:
    return (path / "config.json").exists()


def read(directory: Path) -> Weights:
    """Open a model. Raise UserError for what is damaged, missing or no LLaMA."""
    file = directory / "config.json"
    config = read_json(file)
    cfg, seq_len = _model_config(file, config), config.get("max_position_embeddings", 2048)
    found, all_shapes = tensors(directory), shapes(cfg)
    expected = ((name_in(NAMES, p), all_shapes[p.role]) for p in parameters(cfg))
    ignored = ["rotary_emb.inv_freq", *([NAMES["head"]] if cfg.tie_embeddings else [])]
    files = {name: (tensor.file, tensor.shape) for name, tensor in found.items()}
    check_tensors(directory, files, expected, ignored)
    embedding = found[NAMES["embedding"]]
    if cfg.tie_embeddings and NAMES["head"] in found:
        head = found[NAMES["head"]]
        if head.shape != embedding.shape or not np.array_equal(head.read(), embedding.read()):
            raise UserError(
                f"{head.file}: tensor {NAMES['head']} is not the embedding, but "
                "tie_word_embeddings of config.json is true: transformers 4 would take the "
                "embedding, and 5 the tensor; expected one of them: delete the other"
            )

    def where(parameter: Parameter) -> str:
        name = name_in(NAMES, parameter)
        return f"{found[name].file}: tensor {name}"

    return Weights(
        name=directory.name,
        cfg=cfg,
        seq_len=positive(int, file, "max_position_embeddings", seq_len),
        dtype=embedding.dtype,
        matrix=lambda parameter: found[name_in(NAMES, parameter)].read(),
        where=where,
        read_tokenizer=lambda: _read_tokenizer(directory, config),
        provenance={"source": str(directory)},
    )


def _read_tokenizer(directory: Path, config: dict) -> bytes | None:
    """Return tokenizer.model; or, where there is none, tokenizer.json, as a SentencePiece model if
    one gives the same tokens."""
    file = directory / tokenizer.JSON
    content = read_if_there(directory / tokenizer.MODEL)
    # So begins a SentencePiece model; tiktoken's, which has the same name, does not.
    if content is not None and (content.startswith(b"\n") or not file.exists()):
        _check_beside(directory, config, content)
        return content
    if not file.exists():
        return None
    content = tokenizer.read(str(file))
    return bpe.to_sentencepiece(content) or content


def _check_beside(directory: Path, config: dict, model: bytes) -> None:
    """Raise UserError if other files have tokens that tokenizer.model has not, or another end of
    text: what is trained or sampled would be another model."""
    processor = tokenizer.sentencepiece_of(model, f"{directory}: the tokenizer")
    instead = "expected the same, or with --tokenizer the one to take"
    special = {"bos_token_id": (1, processor.bos_id()), "eos_token_id": (2, processor.eos_id())}
    generation = directory / "generation_config.json"
    files = [("config.json", {field: default for field, (default, _) in special.items()} | config)]
    if generation.exists():
        files.append((generation.name, read_json(generation)))
    for name, values in files:
        for field, (_, expected) in special.items():
            if (got := values.get(field, expected)) != expected:
                raise UserError(
                    f"{directory / name}: {field} is {printable(got)}, and tokenizer.model says "
                    f"{expected}; {instead}"
                )
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        for i, text in _added_tokens(directory / name):
            if not 0 <= i < processor.vocab_size() or processor.id_to_piece(i) != text:
                raise UserError(
                    f"{directory / name}: token {i} is {printable(text)}, which tokenizer.model "
                    f"has not; {instead}"
                )


def _added_tokens(file: Path) -> list[tuple[int, str]]:
    """Return id and text of the tokens that one of transformers' three files adds, if it is there.
    Raise UserError."""
    values = read_json(file) if file.exists() else {}
    try:
        if file.name == "added_tokens.json":
            return [(index(i), text) for text, i in values.items()]
        if file.name == "tokenizer.json":
            return [(index(t["id"]), t["content"]) for t in values.get("added_tokens", [])]
        added = values.get("added_tokens_decoder", {})
        return [(int(i), token["content"]) for i, token in added.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file}: its added tokens have no id and content") from e


def _model_config(file: Path, config: dict) -> ModelConfig:
    def check(field: str, got, *accepted) -> None:
        if got not in accepted:
            known = " or ".join(map(repr, accepted)) or "models without it"
            given = printable(got)
            raise UserError(f"{file}: {field} is {given}, and llama_jax knows {known} only")

    def number(kind: type, field: str, default: float | None = None) -> Any:
        value = config.get(field)
        return positive(kind, file, field, default if value is None else value)

    check("model_type", config.get("model_type"), "llama")
    dim, heads = number(int, "hidden_size"), number(int, "num_attention_heads")
    kv_heads = number(int, "num_key_value_heads", heads)
    check_divisor(file, "num_attention_heads", heads, "hidden_size", dim)
    check_divisor(file, "num_key_value_heads", kv_heads, "num_attention_heads", heads)
    # transformers 5 reads rope_scaling and then rope_parameters, 4 rope_theta and rope_scaling.
    thetas = {"rope_theta": config.get("rope_theta")}
    for field in ("rope_parameters", "rope_scaling"):
        rope = config.get(field) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{file}: {field} is {printable(rope)}, expected an object")
        for key, value in rope.items():
            if key == "rope_theta":
                thetas[f"{field}.rope_theta"] = value
            elif key == "partial_rotary_factor":
                check(f"{field}.{key}", value, 1)
            else:
                check(f"{field}.{key}", value, *["default"] * (key in ("rope_type", "type")))
    thetas = {k: positive(float, file, k, v) for k, v in thetas.items() if v is not None}
    if len(set(thetas.values())) > 1:
        raise UserError(
            f"{file}: {' and '.join(f'{k} is {v:g}' for k, v in thetas.items())}; expected one "
            "value: transformers 4 and 5 would take different ones"
        )
    check("partial_rotary_factor", config.get("partial_rotary_factor", 1), 1)
    check("head_dim", config.get("head_dim"), dim // heads, None)
    check("hidden_act", config.get("hidden_act", "silu"), "silu")
    check("attention_bias", config.get("attention_bias", False), False)
    check("mlp_bias", config.get("mlp_bias", False), False)
    check("quantization_config", config.get("quantization_config"), None)
    check("tie_word_embeddings", config.get("tie_word_embeddings", False), False, True)
    return ModelConfig(
        num_layers=number(int, "num_hidden_layers"),
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_dim_override=number(int, "intermediate_size"),
        vocab_size=number(int, "vocab_size"),
        norm_eps=number(float, "rms_norm_eps"),
        rope_theta=next(iter(thetas.values()), 10_000.0),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def tensors(directory: Path) -> dict[str, StoredArray]:
    """Return every tensor of the files that transformers takes: the only one, or those of an index.

    Raise UserError.
    """
    single, file = directory / SINGLE, directory / INDEX
    if single.exists():
        return safetensors.read(single)
    if not file.exists():
        raise UserError(f"{directory}: has neither {INDEX} nor {SINGLE}")
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{file}: weight_map is {printable(weight_map)}, expected an object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(
                f"{file}: weight_map has tensor {name} in {printable(shard)}, expected the name of "
                "a file beside it"
            )
        if not (directory / shard).exists():
            raise UserError(
                f"{directory / shard}: is missing, and {INDEX} says it holds tensor {name}"
            )
    found: dict[str, StoredArray] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in safetensors.read(directory / shard).items():
            if name in found:
                raise UserError(f"{tensor.file}: has tensor {name}, and so has {found[name].file}")
            found[name] = tensor
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise UserError(f"{directory / shard}: has no tensor {name}, but {INDEX} says so")
    return found


FORMAT = Format(
    is_it=is_it,
    read=read,
    write=write,
    dtypes=tuple(DTYPES),
    options={"shard_bytes": 5_000_000_000},
    open_files=proof.open_files,
    client=("transformers", "torch"),
)
