"""GGUF, llama.cpp's format: one file, by the gguf package's writer and quantisers."""

from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import vocabulary
from llama_jax.formats.weights import (
    EMBEDDING,
    HEAD,
    TYPES,
    Checkpoint,
    Place,
    Source,
    cast,
    check_divisor,
    check_tensors,
    from_pairs,
    names_in,
    positive,
    shapes,
    to_pairs,
)

NAMES = {
    "embed_VD": "token_embd.weight",
    "layers/attn_norm/scale_D": "blk.{}.attn_norm.weight",
    "layers/attn/wq_DGRK": "blk.{}.attn_q.weight",
    "layers/attn/wk_DGK": "blk.{}.attn_k.weight",
    "layers/attn/wv_DGK": "blk.{}.attn_v.weight",
    "layers/attn/wo_GRKD": "blk.{}.attn_output.weight",
    "layers/mlp_norm/scale_D": "blk.{}.ffn_norm.weight",
    "layers/mlp/w_gate_DF": "blk.{}.ffn_gate.weight",
    "layers/mlp/w_up_DF": "blk.{}.ffn_up.weight",
    "layers/mlp/w_down_FD": "blk.{}.ffn_down.weight",
    "final_norm/scale_D": "output_norm.weight",
    "lm_head_DV": "output.weight",
}
FILE = "model.gguf"
QUANTISED = ("q8_0", "q4_0")
BLOCK = 32  # values of a row that share a scale, in both


def write(checkpoint: Checkpoint, out: Path, type: str) -> None:
    """type: one of TYPES or QUANTISED; norms are f32 in any case. Raises UserError."""
    import gguf

    if type not in (*TYPES, *QUANTISED):
        raise UserError(f"--type: got {type}, expected one of {', '.join((*TYPES, *QUANTISED))}")
    cfg = checkpoint.cfg
    writer = gguf.GGUFWriter(out / FILE, "llama")
    writer.add_name(checkpoint.workdir.name)
    writer.add_context_length(checkpoint.experiment.data.seq_len)
    writer.add_embedding_length(cfg.embed_dim)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.mlp_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    file_types = gguf.LlamaFileType
    writer.add_file_type(
        file_types.ALL_F32 if type == "f32" else file_types[f"MOSTLY_{type.upper()}"]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_vocabulary(writer, checkpoint)
    names = names_in(NAMES, cfg)
    for name, place in names.items():
        shape, kind = shapes(cfg)[place.name], _kind(type, place, cfg)
        block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(shape)) // block * num_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for place in names.values():
        matrix = to_pairs(checkpoint.matrix(place), place.name, cfg)
        writer.write_tensor_data(encode(matrix, type, place, cfg)[0])
    writer.close()


def _kind(type: str, place: Place, cfg: ModelConfig):
    """gguf's type of one tensor. What is not of blocks of 32, or a norm, stays f32; of q4_0, the
    tables of tokens are q8_0, since they are what suffers most."""
    import gguf

    shape = shapes(cfg)[place.name]
    if len(shape) == 1 or (type in QUANTISED and shape[1] % BLOCK):
        type = "f32"
    elif type == "q4_0" and place.name in (EMBEDDING, HEAD):
        type = "q8_0"
    return gguf.GGMLQuantizationType[type.upper()]


def encode(matrix: np.ndarray, type: str, place: Place, cfg: ModelConfig) -> tuple[np.ndarray, Any]:
    """(what the file holds of a matrix, gguf's type of it)."""
    import gguf

    kind = _kind(type, place, cfg)
    if kind.name.lower() in TYPES:
        values = cast(matrix, kind.name.lower(), place)
        return values.view(np.uint8) if kind.name == "BF16" else values, kind
    return gguf.quantize(np.ascontiguousarray(matrix), kind), kind


def decode(data: np.ndarray, kind: Any) -> np.ndarray:
    """fp32, the inverse of encode up to rounding."""
    import gguf

    return gguf.dequantize(data, kind)


def _write_vocabulary(writer, checkpoint: Checkpoint) -> None:
    """Every row of the model needs a token: those that the tokenizer lacks get an unused one."""
    parsed = checkpoint.vocabulary
    padding = [f"[PAD{i}]" for i in range(len(parsed.pieces), checkpoint.cfg.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([p.piece for p in parsed.pieces] + padding)
    writer.add_token_scores([p.score for p in parsed.pieces] + [-1000.0] * len(padding))
    types = [p.type for p in parsed.pieces] + [vocabulary.UNUSED] * len(padding)
    writer.add_token_types(types)
    writer.add_bos_token_id(parsed.trainer_spec.bos_id)
    writer.add_eos_token_id(parsed.trainer_spec.eos_id)
    writer.add_unk_token_id(parsed.trainer_spec.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(parsed.normalizer_spec.remove_extra_whitespaces)


def read(file: Path) -> Source:
    """Of f32, f16, bf16 and q8_0 tensors. Raises UserError."""
    import gguf

    reader = _open(file)

    def field(key: str, default: Any = None) -> Any:
        found = reader.fields.get(key)
        if found is None and default is None:
            raise UserError(f"{file}: has no field {key}")
        return default if found is None else found.contents()

    def check(key: str, got: Any, accepted: Any) -> None:
        if got != accepted:
            raise UserError(f"{file}: {key} is {got!r}, and llama_jax knows {accepted!r} only")

    check("general.architecture", field("general.architecture"), "llama")
    where = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.tensor_type) for t in reader.tensors
    }
    embedding = NAMES[EMBEDDING]
    if embedding not in where:
        raise UserError(f"{file}: has no tensor {embedding}")

    def number(kind: type, key: str, default: Any = None) -> Any:
        return positive(kind, file, f"llama.{key}", field(f"llama.{key}", default))

    heads, dim = number(int, "attention.head_count"), number(int, "embedding_length")
    kv_heads = number(int, "attention.head_count_kv", heads)
    for key, value, of, size in (
        ("head_count", heads, "embedding_length", dim),
        ("head_count_kv", kv_heads, "attention.head_count", heads),
    ):
        check_divisor(file, f"llama.attention.{key}", value, f"llama.{of}", size)
    check("llama.rope.scaling.type", field("llama.rope.scaling.type", "none"), "none")
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        check(f"llama.{key}", field(f"llama.{key}", dim // heads), dim // heads)
    cfg = ModelConfig(
        num_layers=number(int, "block_count"),
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_dim_override=number(int, "feed_forward_length"),
        vocab_size=where[embedding][2][0],
        norm_eps=_shortest(number(float, "attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(number(float, "rope.freq_base", 10_000.0)),
        tie_embeddings=NAMES[HEAD] not in where,
    )
    for tensor in reader.tensors:
        if tensor.tensor_type.name.lower() not in (*TYPES, "q8_0"):
            raise UserError(
                f"{file}: tensor {tensor.name} is of type {tensor.tensor_type.name}, expected "
                f"F32, F16, BF16 or Q8_0"
            )
    found = {t.name: (file, tuple(map(int, reversed(t.shape)))) for t in reader.tensors}
    check_tensors(found, {k: shapes(cfg)[place.name] for k, place in names_in(NAMES, cfg).items()})

    def matrix(place: Place) -> np.ndarray:
        offset, dtype, shape, kind = where[NAMES[place.name].format(place.layer)]
        data = np.fromfile(file, dtype, int(np.prod(shape)), offset=offset).reshape(shape)
        return from_pairs(gguf.dequantize(data, kind), place.name, cfg)

    precision = where[embedding][3].name.lower()
    return Source(
        cfg=cfg,
        seq_len=number(int, "context_length"),
        type=precision if precision in TYPES else "f32",
        tokenizer=lambda: _read_vocabulary(file, field),
        matrix=matrix,
        where=lambda place: f"{file}: tensor {NAMES[place.name].format(place.layer)}",
    )


def _open(file: Path):
    import gguf

    class Reader(gguf.GGUFReader):
        def _build_tensors(self, start_offs, fields):
            for field in fields:
                _, name, _, dims, kind, offset = field.parts
                block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
                end = start_offs + int(offset[0]) + int(np.prod(dims)) // block * num_bytes
                if end > self.data.size:
                    raise UserError(
                        f"{file}: is truncated: tensor {bytes(name).decode()} ends at byte {end}, "
                        f"the file at {self.data.size}"
                    )
            super()._build_tensors(start_offs, fields)

    try:
        return Reader(file)
    except UserError:
        raise
    except Exception as e:  # IndexError, ValueError and others, by what is damaged
        raise UserError(f"{file}: is truncated or no GGUF: {e}") from e


def _shortest(x: float) -> float:
    """The number with the fewest digits that is this one in fp32: 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(x)))


def _read_vocabulary(file: Path, field) -> bytes:
    if field("tokenizer.ggml.model") != "llama":
        raise UserError(
            f"{file}: tokenizer.ggml.model is {field('tokenizer.ggml.model')!r}, and llama_jax "
            "knows SentencePiece's, 'llama', only"
        )
    pieces, scores, types = (
        field(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")
    )
    num_pieces = len(pieces)
    while types[num_pieces - 1] == vocabulary.UNUSED:  # rows without a piece
        num_pieces -= 1
    special = {
        "unk_id": field("tokenizer.ggml.unknown_token_id", 0),
        "bos_id": field("tokenizer.ggml.bos_token_id"),
        "eos_id": field("tokenizer.ggml.eos_token_id"),
    }
    return vocabulary.sentencepiece(
        pieces[:num_pieces],
        scores[:num_pieces],
        types[:num_pieces],
        special,
        bool(field("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
