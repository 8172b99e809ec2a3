"""A tokenizer.json of byte-level BPE, as LLaMA 3's is, in GGUF's terms and back."""

import json
from collections.abc import Callable
from typing import Any

from llama_jax.config import UserError
from llama_jax.formats import vocabulary
from llama_jax.formats.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, second]}


SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
# What llama.cpp does where tokenizer.ggml.pre has a name: how it splits a text; whether a part that
# is a token needs no merges, and whether a text begins with bos unless the file says so.
PRE: dict[str, tuple[dict[str, Any], bool]] = {
    "llama-bpe": (_sequence(SPLIT, _bytes(use_regex=False)), True),
    "smollm": (_sequence({"type": "Digits", "individual_digits": True}, _bytes(True)), False),
    "gpt-2": (_bytes(use_regex=True), False),
}
OTHER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
EOS = ("eos", "eot", "eom")  # all of these end a text for llama.cpp


def without_roles(content: bytes) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Return a tokenizer.json as it was before data.tokenizer.read added roles, and the entries of
    added_tokens that have the roles "bos" and "eos"."""
    parsed = json.loads(content)
    found: dict[str, list[dict[str, Any]]] = {"bos": [], "eos": []}
    for token in parsed["added_tokens"]:
        for role in token.pop("roles", ()):
            found[role].append(token)
    return parsed, found


def to_sentencepiece(content: bytes) -> bytes | None:
    """Return the SentencePiece model that gives the tokens of a tokenizer.json, with roles; None if
    there is none."""
    try:
        parsed, roles = without_roles(content)
        (bos,), (eos,) = roles["bos"], roles["eos"]
        return vocabulary.from_hugging_face(parsed, bos["id"], eos["id"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def pre_of(content: bytes) -> str:
    """Return what tokenizer.ggml.pre is for a tokenizer.json. Raise UserError if llama.cpp has no
    name that gives the same tokens."""
    parsed, _ = without_roles(content)
    model = parsed["model"]

    def check(field: str, got: Any, *accepted: Any) -> None:
        if got not in accepted:
            raise UserError(
                f"--to: gguf cannot hold the tokenizer.json: {field} is {str(got)[:200]}, expected "
                + " or ".join(map(str, accepted))
            )

    check("model.type", model["type"], "BPE")
    check("model.byte_fallback", model.get("byte_fallback", False), False)
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        check(f"model.{field}", model.get(field), None, "")
    check("normalizer", parsed["normalizer"], None)
    check("decoder", (parsed["decoder"] or {}).get("type"), "ByteLevel")
    for token in parsed["added_tokens"]:
        for field in ("lstrip", "rstrip", "single_word"):
            check(f"{field} of {token['content']!r}", token[field], False)
    split = _same_splits(parsed["pre_tokenizer"])
    name = next((k for k, (other, _) in PRE.items() if _same_splits(other) == split), None)
    if name is None:
        raise UserError(
            "--to: gguf cannot hold the tokenizer.json: llama.cpp has no name that is known here "
            f"for its pre_tokenizer; expected that of {', '.join(PRE)}"
        )
    check(f"model.ignore_merges beside {name}", model.get("ignore_merges", False), PRE[name][1])
    return name


def _same_splits(pre_tokenizer: Any) -> Any:
    """Return it without what changes no token."""
    if isinstance(pre_tokenizer, list):
        return [_same_splits(one) for one in pre_tokenizer]
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    default = {"use_regex": True} if pre_tokenizer.get("type") == "ByteLevel" else {}
    fields = default | {k: v for k, v in pre_tokenizer.items() if k != "trim_offsets"}
    return {key: _same_splits(value) for key, value in fields.items()}


def to_gguf(writer: Any, content: bytes, vocab_size: int, before: tuple[int, ...]) -> None:
    """Write a tokenizer.json, with a token for each row of the model, to a GGUFWriter. Raise
    UserError if GGUF cannot hold it. before: what comes before a text."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_of(content))
    parsed, roles = without_roles(content)
    pieces, types = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for piece, i in parsed["model"]["vocab"].items():
        pieces[i], types[i] = piece, NORMAL
    for token in parsed["added_tokens"]:
        i = token["id"]
        pieces[i], types[i] = token["content"], CONTROL if token["special"] else USER_DEFINED
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    merges = parsed["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(roles["bos"][0]["id"])
    first, *others = roles["eos"]
    ends = [first, *sorted(others, key=lambda token: "eom" in token["content"])]
    if len(ends) > len(EOS):
        raise UserError(
            f"--to: gguf cannot hold the tokenizer.json: {len(ends)} tokens end a text, expected "
            f"{len(EOS)} at the most"
        )
    for name, token in zip(EOS, ends, strict=False):
        getattr(writer, f"add_{name}_token_id")(token["id"])
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(False)


def from_gguf(field: Callable[..., Any], where: str) -> bytes:
    """Return the tokenizer.json, with roles, of a GGUF's fields. Raise UserError.

    field(key, default) returns a field, and raises UserError if it is missing and has no default.
    """
    pre = field("tokenizer.ggml.pre")
    name = OTHER_NAMES.get(pre, pre)
    if name not in PRE:
        raise UserError(
            f"{where}: tokenizer.ggml.pre is {pre!r}, and llama_jax knows "
            f"{', '.join((*PRE, *OTHER_NAMES))} only; give the model's tokenizer.json with "
            "--tokenizer"
        )
    if field("tokenizer.ggml.add_eos_token", False):
        raise UserError(f"{where}: tokenizer.ggml.add_eos_token is True, and llama_jax knows False")
    pieces, types, merges = (
        field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
    )
    for key, values, kind in (
        ("tokens", pieces, str),
        ("token_type", types, int),
        ("merges", merges, str),
    ):
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise UserError(f"{where}: tokenizer.ggml.{key} is no list of {kind.__name__} only")
    if len(pieces) != len(types):
        raise UserError(
            f"{where}: tokenizer.ggml.token_type has {len(types)} entries for {len(pieces)} tokens"
        )
    split, ignore_merges = PRE[name]
    bos = field("tokenizer.ggml.bos_token_id")
    if type(bos) is not int or not 0 <= bos < len(pieces):
        raise UserError(
            f"{where}: tokenizer.ggml.bos_token_id is {bos!r}, expected one of {len(pieces)} tokens"
        )
    ends = [field(f"tokenizer.ggml.{role}_token_id", -1) for role in EOS]
    roles = [("bos", bos), *(("eos", i) for i in dict.fromkeys(ends))]
    added = [
        {"id": i, "content": piece, "special": kind != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        | {"roles": [role for role, of_role in roles if of_role == i]}
        for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) or i in (bos, *ends)
    ]
    template = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {}
    if field("tokenizer.ggml.add_bos_token", name == "llama-bpe"):
        piece = pieces[bos]
        template.insert(0, {"SpecialToken": {"id": piece, "type_id": 0}})
        special[piece] = {"id": piece, "ids": [bos], "tokens": [piece]}
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": template, "pair": pair}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": processor | {"special_tokens": special},
        "decoder": _bytes(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            # The tokenizers package gives added tokens that are not in here other ids.
            "vocab": {piece: i for i, piece in enumerate(pieces) if types[i] != UNUSED},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    return json.dumps(whole, ensure_ascii=False).encode()
