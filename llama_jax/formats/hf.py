"""Hugging Face: sharded safetensors, config.json, tokenizer.json, for transformers 4 and 5."""

import math
from pathlib import Path
from typing import Any

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import safetensors, vocabulary
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    DTYPES,
    Parameter,
    cast,
    name_in,
    names_in,
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
INDEX = "model.safetensors.index.json"


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
        files = {"model.safetensors": shards[0]}
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
    special = {
        "bos_token_id": weights.vocabulary.trainer_spec.bos_id,
        "eos_token_id": weights.vocabulary.trainer_spec.eos_id,
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
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json.

    The class is PreTrainedTokenizerFast because transformers 5's LlamaTokenizer puts a normalizer
    of its own in the parameter of tokenizer.json's, which gives other ids for leading spaces.
    """
    trainer, pieces = weights.vocabulary.trainer_spec, weights.vocabulary.pieces
    assert weights.tokenizer
    (out / "tokenizer.model").write_bytes(weights.tokenizer)
    write_json(out / "tokenizer.json", vocabulary.hugging_face(weights.vocabulary))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[trainer.bos_id].piece,
        "eos_token": pieces[trainer.eos_id].piece,
        "unk_token": pieces[trainer.unk_id].piece,
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
    found = tensors(directory)
    names = names_in(NAMES, cfg)
    expected = {name: shapes(cfg)[parameter.role] for name, parameter in names.items()}
    ignored = ["rotary_emb.inv_freq", *([NAMES["head"]] if cfg.tie_embeddings else [])]
    check_tensors({k: (t.file, t.shape) for k, t in found.items()}, expected, ignored)

    def where(parameter: Parameter) -> str:
        name = name_in(NAMES, parameter)
        return f"{found[name].file}: tensor {name}"

    return Weights(
        name=directory.name,
        cfg=cfg,
        seq_len=positive(int, file, "max_position_embeddings", seq_len),
        dtype=found[NAMES["embedding"]].dtype_name,
        matrix=lambda parameter: found[name_in(NAMES, parameter)].read(),
        where=where,
        read_tokenizer=lambda: _read_tokenizer(directory, config),
        provenance={"source": str(directory)},
    )


def _read_tokenizer(directory: Path, config: dict) -> bytes | None:
    """Return tokenizer.model, or what tokenizer.json says in its stead."""
    file = directory / "tokenizer.json"
    if (directory / "tokenizer.model").exists() or not file.exists():
        return read_if_there(directory / "tokenizer.model")
    try:
        return vocabulary.from_hugging_face(
            read_json(file), config["bos_token_id"], config["eos_token_id"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{file}: cannot be made a SentencePiece model: {e}; expected LLaMA's kind, or give "
            "the model's tokenizer.model with --tokenizer"
        ) from e


def _model_config(file: Path, config: dict) -> ModelConfig:
    def check(field: str, got, *accepted) -> None:
        if got not in accepted:
            known = " or ".join(map(repr, accepted))
            raise UserError(f"{file}: {field} is {got!r}, and llama_jax knows {known} only")

    def number(kind: type, field: str, default: float | None = None) -> Any:
        value = config.get(field)
        return positive(kind, file, field, default if value is None else value)

    check("model_type", config.get("model_type"), "llama")
    dim, heads = number(int, "hidden_size"), number(int, "num_attention_heads")
    kv_heads = number(int, "num_key_value_heads", heads)
    check_divisor(file, "num_attention_heads", heads, "hidden_size", dim)
    check_divisor(file, "num_key_value_heads", kv_heads, "num_attention_heads", heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: rope_parameters is {rope!r}, expected an object")
    config = config | rope
    check("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
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
        rope_theta=number(float, "rope_theta", 10_000.0),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def tensors(directory: Path) -> dict[str, StoredArray]:
    """Return every tensor of the files that the index names, or of the only one."""
    if (directory / INDEX).exists():
        weight_map = read_json(directory / INDEX).get("weight_map", {})
        files = [directory / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.exists():
                name = min(k for k, v in weight_map.items() if v == file.name)
                raise UserError(f"{file}: is missing, and {INDEX} says it holds tensor {name}")
    else:
        weight_map, files = {}, [directory / "model.safetensors"]
        if not files[0].exists():
            raise UserError(f"{directory}: has neither {INDEX} nor {files[0].name}")
    found = {name: tensor for file in files for name, tensor in safetensors.read(file).items()}
    for name, file in weight_map.items():
        if name not in found or found[name].file.name != file:
            raise UserError(f"{directory / file}: has no tensor {name}, but {INDEX} says so")
    return found


FORMAT = Format(
    is_it=is_it,
    read=read,
    write=write,
    dtypes=tuple(DTYPES),
    options={"shard_bytes": 5_000_000_000},
    open_files=proof.open_files,
)
