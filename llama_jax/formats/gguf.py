"""GGUF, llama.cpp's format: one file, by the gguf package's writer and quantisers."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import bpe, vocabulary
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
from llama_jax.formats.proofs import gguf as proof
from llama_jax.formats.weights import Weights, check_divisor, check_tensors, positive, printable

NAMES = {
    "embedding": "token_embd.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
FILE = "model.gguf"
QUANTISED = ("q8_0", "q4_0")
# What is read of llama.cpp's keys, and what the others may be: without effect.
READ = {
    f"llama.{key}"
    for key in (
        *("context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("rope.dimension_count", "rope.freq_base", "attention.head_count"),
        *("attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "vocab_size"),
    )
}
UNSCALED = {
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0.0, 1.0),
    "llama.rope.scale_linear": (0.0, 1.0),
    "llama.rope.scaling.finetuned": (False,),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
}
BLOCK = 32  # values of a row that share a scale, in both


def write(weights: Weights, out: Path, dtype: str) -> None:
    """Write one file into the directory `out`. Raise UserError.

    dtype: one of DTYPES or QUANTISED; norms are f32 in any case.
    """
    import gguf

    cfg = weights.cfg
    writer = gguf.GGUFWriter(out / FILE, "llama")
    writer.add_name(weights.name)
    writer.add_context_length(weights.seq_len)
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
        file_types.ALL_F32 if dtype == "f32" else file_types[f"MOSTLY_{dtype.upper()}"]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_vocabulary(writer, weights)
    names = names_in(NAMES, cfg)
    for name, parameter in names.items():
        shape, kind = shapes(cfg)[parameter.role], _kind(dtype, parameter, cfg)
        block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(shape)) // block * num_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for parameter in names.values():
        matrix = interleave_rope(weights.matrix(parameter), parameter.role, cfg)
        writer.write_tensor_data(encode(matrix, dtype, parameter, cfg)[0])
    writer.close()


def _kind(dtype: str, parameter: Parameter, cfg: ModelConfig):
    """Return gguf's type of one tensor. What is not of blocks of 32, or a norm, stays f32; of q4_0,
    the tables of tokens are q8_0, since they are what suffers most."""
    import gguf

    shape = shapes(cfg)[parameter.role]
    if len(shape) == 1 or (dtype in QUANTISED and shape[1] % BLOCK):
        dtype = "f32"
    elif dtype == "q4_0" and parameter.role in ("embedding", "head"):
        dtype = "q8_0"
    return gguf.GGMLQuantizationType[dtype.upper()]


def encode(
    matrix: np.ndarray, dtype: str, parameter: Parameter, cfg: ModelConfig
) -> tuple[np.ndarray, Any]:
    """Return (what the file holds of a matrix, gguf's type of it)."""
    import gguf

    kind = _kind(dtype, parameter, cfg)
    if kind.name.lower() in DTYPES:
        values = cast(matrix, kind.name.lower(), parameter)
        return values.view(np.uint8) if kind.name == "BF16" else values, kind
    return gguf.quantize(np.ascontiguousarray(matrix), kind), kind


def rounded(matrix: np.ndarray, dtype: str, parameter: Parameter, cfg: ModelConfig) -> np.ndarray:
    """Return the fp32 values that encode leaves of a matrix."""
    import gguf

    return gguf.dequantize(*encode(matrix, dtype, parameter, cfg))


def _write_vocabulary(writer, weights: Weights) -> None:
    """Write a token for every row of the model: an unused one where the tokenizer has none."""
    parsed = weights.sentencepiece
    if parsed is None:
        assert weights.tokenizer
        before = weights.vocabulary.before
        bpe.to_gguf(writer, weights.tokenizer, weights.cfg.vocab_size, before)
        return
    padding = [f"[PAD{i}]" for i in range(len(parsed.pieces), weights.cfg.vocab_size)]
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


def is_it(path: Path) -> bool:
    """Return whether it is a GGUF, or the directory that write leaves."""
    return (path.suffix == ".gguf" and path.is_file()) or (path / FILE).is_file()


def read(path: Path) -> Weights:
    """Open a model of tensors of the types that the gguf package can dequantise. Raise
    UserError."""
    import gguf

    file = path / FILE if path.is_dir() else path
    reader = _open(file)

    field = partial(_field, file, reader)
    stored = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.tensor_type) for t in reader.tensors
    }
    embedding = NAMES["embedding"]
    cfg = _model_config(file, reader)
    for kind, name in {t.tensor_type: t.name for t in reversed(reader.tensors)}.items():
        _check_type(file, name, kind)
    found = {t.name: (file, tuple(map(int, reversed(t.shape)))) for t in reader.tensors}
    all_shapes = shapes(cfg)
    expected = ((name_in(NAMES, p), all_shapes[p.role]) for p in parameters(cfg))
    check_tensors(file, found, expected)

    def matrix(parameter: Parameter) -> np.ndarray:
        offset, dtype, shape, kind = stored[name_in(NAMES, parameter)]
        data = np.fromfile(file, dtype, int(np.prod(shape)), offset=offset).reshape(shape)
        return deinterleave_rope(gguf.dequantize(data, kind), parameter.role, cfg)

    precision = stored[embedding][3].name.lower()
    return Weights(
        name=file.stem,
        cfg=cfg,
        seq_len=positive(int, file, "llama.context_length", field("llama.context_length")),
        dtype=precision if precision in DTYPES else "f32",
        matrix=matrix,
        where=lambda parameter: f"{file}: tensor {name_in(NAMES, parameter)}",
        read_tokenizer=lambda: _read_vocabulary(file, field),
        provenance={"source": str(file)},
    )


def _field(file: Path, reader: Any, key: str, default: Any = None) -> Any:
    """Return a field of the header. Raise UserError if there is neither it nor a default."""
    found = reader.fields.get(key)
    if found is None and default is None:
        raise UserError(f"{file}: has no field {key}")
    try:
        return default if found is None else found.contents()
    except ValueError as e:
        raise UserError(f"{file}: {key} is damaged: {e}") from e


def _model_config(file: Path, reader: Any) -> ModelConfig:
    """Return what the header says of the model. Raise UserError for what is no LLaMA of ours."""
    field, shape_of = partial(_field, file, reader), {t.name: t.shape for t in reader.tensors}

    def check(key: str, got: Any, *accepted: Any) -> None:
        if got not in accepted:
            known = " or ".join(map(repr, accepted)) or "models without it"
            raise UserError(f"{file}: {key} is {printable(got)}, and llama_jax knows {known} only")

    def number(kind: type, key: str, default: Any = None) -> Any:
        return positive(kind, file, f"llama.{key}", field(f"llama.{key}", default))

    check("general.architecture", field("general.architecture"), "llama")
    if (parts := field("split.count", 1)) != 1:
        raise UserError(
            f"{file}: is one of {parts} parts (split.count); expected one file: put them together "
            "with llama-gguf-split --merge"
        )
    for key in reader.fields:
        if key.startswith("llama.") and key not in READ:
            check(key, field(key), *UNSCALED.get(key, ()))
    if NAMES["embedding"] not in shape_of:
        raise UserError(f"{file}: has no tensor {NAMES['embedding']}")
    rows = int(shape_of[NAMES["embedding"]][-1])
    check("llama.vocab_size", field("llama.vocab_size", rows), rows)
    heads, dim = number(int, "attention.head_count"), number(int, "embedding_length")
    kv_heads = number(int, "attention.head_count_kv", heads)
    for key, value, of, size in (
        ("head_count", heads, "embedding_length", dim),
        ("head_count_kv", kv_heads, "attention.head_count", heads),
    ):
        check_divisor(file, f"llama.attention.{key}", value, f"llama.{of}", size)
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        check(f"llama.{key}", field(f"llama.{key}", dim // heads), dim // heads)
    return ModelConfig(
        num_layers=number(int, "block_count"),
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_dim_override=number(int, "feed_forward_length"),
        vocab_size=rows,
        norm_eps=_shortest(number(float, "attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(number(float, "rope.freq_base", 10_000.0)),
        tie_embeddings=NAMES["head"] not in shape_of,
    )


def _open(file: Path):
    """Return the gguf package's reader of a file, with llama.cpp's checks, which it has not. Raise
    UserError."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            end = offset + np.dtype(dtype).itemsize * int(count)
            if end > self.data.size:
                raise ValueError(f"it ends at byte {self.data.size}, within a field")
            return super()._get(offset, dtype, count, override_order)

        def _build_tensors(self, start_offs, fields):
            if self.byte_order != "I":
                raise UserError(f"{file}: its numbers are big-endian; expected llama.cpp's own")
            expected = 0
            for field in fields:
                _, name, _, dims, kind, offset = field.parts
                block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
                where = f"{file}: tensor {bytes(name).decode()}"
                if int(offset[0]) != expected:
                    raise UserError(f"{where} is at {offset[0]}, expected {expected}")
                shape = [int(n) for n in dims]
                if not shape or min(shape) < 1 or shape[0] % block:
                    raise UserError(f"{where} is of shape {shape[::-1]}, in blocks of {block}")
                end = start_offs + expected + math.prod(shape) // block * num_bytes
                if end > self.data.size:
                    raise UserError(
                        f"{file}: is truncated: tensor {bytes(name).decode()} ends at byte {end}, "
                        f"the file at {self.data.size}"
                    )
                expected = -(-(end - start_offs) // self.alignment) * self.alignment
            super()._build_tensors(start_offs, fields)

    try:
        return Reader(file)
    except UserError:
        raise
    except Exception as e:  # IndexError, ValueError and others, by what is damaged
        raise UserError(f"{file}: is truncated or no GGUF: {e}") from e


def _check_type(file: Path, name: str, kind: Any) -> None:
    """Raise UserError, naming the tensor, unless the gguf package can dequantise the type."""
    import gguf

    _, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, num_bytes), np.uint8), kind)
    except NotImplementedError as e:
        raise UserError(
            f"{file}: tensor {name} is of type {kind.name}, which the gguf package cannot "
            "dequantise; expected F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K or IQ1_S to IQ4_XS"
        ) from e


def _shortest(x: float) -> float:
    """Return the number with the fewest digits that is x in fp32: 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(x)))


def _read_vocabulary(file: Path, field) -> bytes:
    kind = field("tokenizer.ggml.model")
    if kind == "gpt2":
        return bpe.from_gguf(field, str(file))
    if kind != "llama":
        raise UserError(
            f"{file}: tokenizer.ggml.model is {kind!r}, and llama_jax knows SentencePiece's, "
            "'llama', and byte-level BPE, 'gpt2', only"
        )
    if field("tokenizer.ggml.add_space_prefix", True) is not True:
        raise UserError(
            f"{file}: tokenizer.ggml.add_space_prefix is false, and llama_jax knows true only"
        )
    pieces, scores, types = lists = [
        field(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")
    ]
    for key, values, kind in zip(
        ("tokens", "scores", "token_type"), lists, (str, float, int), strict=True
    ):
        if not isinstance(values, list) or len(values) != len(pieces) or not values:
            raise UserError(f"{file}: tokenizer.ggml.{key} has not a value for each of the tokens")
        if not all(type(value) is kind for value in values):
            raise UserError(f"{file}: tokenizer.ggml.{key} is not of {kind.__name__} only")
    if wrong := set(types) - set(range(vocabulary.NORMAL, vocabulary.BYTE + 1)):
        raise UserError(f"{file}: tokenizer.ggml.token_type has {min(wrong)}, expected 1 to 6")
    num_pieces = len(pieces)
    while num_pieces and types[num_pieces - 1] == vocabulary.UNUSED:  # rows without a piece
        num_pieces -= 1
    special = {
        "unk_id": field("tokenizer.ggml.unknown_token_id", 0),
        "bos_id": field("tokenizer.ggml.bos_token_id"),
        "eos_id": field("tokenizer.ggml.eos_token_id"),
    }
    for name, i in special.items():
        if type(i) is not int or not 0 <= i < num_pieces:
            raise UserError(
                f"{file}: the token {name} is {printable(i)}, expected one of {num_pieces} tokens"
            )
    return vocabulary.sentencepiece(
        pieces[:num_pieces],
        scores[:num_pieces],
        types[:num_pieces],
        special,
        bool(field("tokenizer.ggml.remove_extra_whitespaces", False)),
    )


FORMAT = Format(
    is_it=is_it,
    read=read,
    write=write,
    dtypes=(*DTYPES, *QUANTISED),
    rounded=rounded,
    open_files=proof.open_files,
    client=("llama-cpp-python",),
    keeps_spaces=True,
)
