"""Hugging Face: sharded safetensors, config.json, tokenizer.json, for transformers 4 and 5."""

import json
import math
from operator import index
from pathlib import Path
from typing import Any

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import vocabulary
from llama_jax.formats.weights import (
    EMBEDDING,
    HEAD,
    TYPES,
    Checkpoint,
    Place,
    Source,
    Tensor,
    cast,
    check_divisor,
    check_tensors,
    names_in,
    num_values,
    places,
    positive,
    read_if_there,
    read_json,
    shapes,
    write_json,
)

NAMES = {
    "embed_VD": "model.embed_tokens.weight",
    "layers/attn_norm/scale_D": "model.layers.{}.input_layernorm.weight",
    "layers/attn/wq_DGRK": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attn/wk_DGK": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attn/wv_DGK": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attn/wo_GRKD": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm/scale_D": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/w_gate_DF": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/w_up_DF": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/w_down_FD": "model.layers.{}.mlp.down_proj.weight",
    "final_norm/scale_D": "model.norm.weight",
    "lm_head_DV": "lm_head.weight",
}
DTYPES = {"f32": "F32", "bf16": "BF16", "f16": "F16"}  # safetensors' names
INDEX = "model.safetensors.index.json"


def write(checkpoint: Checkpoint, out: Path, type: str, shard_bytes: int) -> None:
    """Everything from_pretrained() looks for, into the directory `out`."""
    write_config(checkpoint, out, type)
    write_tokenizer(checkpoint, out)
    size = TYPES[type].itemsize
    shards: list[list[Place]] = [[]]
    used = 0
    for place in places(checkpoint.cfg):
        num_bytes = size * math.prod(shapes(checkpoint.cfg)[place.name])
        if shards[-1] and used + num_bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(place)
        used += num_bytes
    files = {
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards)
    }
    if len(shards) == 1:
        files = {"model.safetensors": shards[0]}
    for name, shard in files.items():
        _write_shard(checkpoint, out / name, type, shard)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": num_values(checkpoint.cfg) * size},
            "weight_map": {_name(place): file for file, shard in files.items() for place in shard},
        }
        write_json(out / INDEX, index)


def _name(place: Place) -> str:
    return NAMES[place.name].format(place.layer)


def _write_shard(checkpoint: Checkpoint, path: Path, type: str, shard: list[Place]) -> None:
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for place in shard:
        shape = shapes(checkpoint.cfg)[place.name]
        start, end = end, end + TYPES[type].itemsize * math.prod(shape)
        offsets = {"dtype": DTYPES[type], "shape": shape, "data_offsets": [start, end]}
        header[_name(place)] = offsets
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place in shard:
            cast(checkpoint.matrix(place), type, place).tofile(file)


def write_config(checkpoint: Checkpoint, out: Path, type: str) -> None:
    """config.json and generation_config.json."""
    cfg = checkpoint.cfg
    dtype = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[type]
    special = {
        "bos_token_id": checkpoint.vocabulary.trainer_spec.bos_id,
        "eos_token_id": checkpoint.vocabulary.trainer_spec.eos_id,
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
        "max_position_embeddings": checkpoint.experiment.data.seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_std,
        **special,
        # transformers 4 reads the first of each pair, 5 the second.
        **{"torch_dtype": dtype, "dtype": dtype},
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
    }
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", special)


def write_tokenizer(checkpoint: Checkpoint, out: Path) -> None:
    """tokenizer.model, tokenizer.json and tokenizer_config.json.

    The class is PreTrainedTokenizerFast because transformers 5's LlamaTokenizer puts a normalizer
    of its own in the place of tokenizer.json's, which gives other ids for leading spaces.
    """
    trainer, pieces = checkpoint.vocabulary.trainer_spec, checkpoint.vocabulary.pieces
    (out / "tokenizer.model").write_bytes(checkpoint.tokenizer)
    write_json(out / "tokenizer.json", vocabulary.hugging_face(checkpoint.vocabulary))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[trainer.bos_id].piece,
        "eos_token": pieces[trainer.eos_id].piece,
        "unk_token": pieces[trainer.unk_id].piece,
        "model_max_length": checkpoint.experiment.data.seq_len,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", config)


def read(directory: Path) -> Source:
    """Raises UserError for what is damaged, missing or no LLaMA."""
    file = directory / "config.json"
    config = read_json(file)
    cfg, seq_len = _model_config(file, config), config.get("max_position_embeddings", 2048)
    found = tensors(directory)
    names = names_in(NAMES, cfg)
    expected = {name: shapes(cfg)[place.name] for name, place in names.items()}
    ignored = ["rotary_emb.inv_freq", *([NAMES[HEAD]] if cfg.tie_embeddings else [])]
    check_tensors({k: (t.file, t.shape) for k, t in found.items()}, expected, ignored)
    return Source(
        cfg=cfg,
        seq_len=positive(int, file, "max_position_embeddings", seq_len),
        type=found[NAMES[EMBEDDING]].type,
        tokenizer=lambda: _read_tokenizer(directory, config),
        matrix=lambda place: found[_name(place)].read(),
        where=lambda place: f"{found[_name(place)].file}: tensor {_name(place)}",
    )


def _read_tokenizer(directory: Path, config: dict) -> bytes | None:
    """tokenizer.model, or what tokenizer.json says in its stead."""
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


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the files that the index names, or of the only one."""
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
    found = {name: tensor for file in files for name, tensor in shard(file).items()}
    for name, file in weight_map.items():
        if name not in found or found[name].file.name != file:
            raise UserError(f"{directory / file}: has no tensor {name}, but {INDEX} says so")
    return found


def shard(file: Path) -> dict[str, Tensor]:
    dtypes = {name: TYPES[type] for type, name in DTYPES.items()}
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, size))
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {}
        for name, entry in header.items():
            start, end = map(index, entry["data_offsets"])
            entries[name] = str(entry["dtype"]), tuple(map(index, entry["shape"])), start, end
    except (ValueError, AttributeError, KeyError, TypeError) as e:
        raise UserError(f"{file}: is truncated or not safetensors, by its header") from e
    tensors = {}
    for name, (dtype, shape, start, end) in entries.items():
        if dtype not in dtypes:
            raise UserError(
                f"{file}: tensor {name} is of type {dtype}, expected {', '.join(dtypes)}"
            )
        num_bytes = dtypes[dtype].itemsize * math.prod(shape)
        if not 0 <= start <= end or end - start != num_bytes:
            raise UserError(
                f"{file}: tensor {name} has data_offsets {start} to {end}, expected {num_bytes} "
                f"bytes for shape {shape}"
            )
        if 8 + length + end > size:
            raise UserError(
                f"{file}: is truncated: tensor {name} ends at byte {8 + length + end}, the file at "
                f"{size}"
            )
        tensors[name] = Tensor(file, dtypes[dtype], shape, 8 + length + start)
    return tensors
