"""SentencePiece models in the terms of other tokenizers, and back."""

import re
from typing import Any

from llama_jax.config import UserError
from llama_jax.data.tokenizer import check_kind

# Types of pieces; GGUF numbers them so too.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}


def _proto() -> Any:
    """Return SentencePiece's messages, whose classes are made at run time."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2


def parse(model: bytes):
    """Return the ModelProto of a tokenizer of LLaMA's kind. Raise UserError for any other kind."""
    check_kind(model, "data.tokenizer")
    return _proto().ModelProto.FromString(model)


def check_size(pieces: int, vocab_size: int, where: str) -> None:
    """Raise UserError if the tokenizer has tokens that the model has no row for."""
    if pieces > vocab_size:
        raise UserError(
            f"{where} has {pieces} pieces, but the model {vocab_size} rows; "
            "expected the tokenizer that it was trained with"
        )


def hugging_face(parsed) -> dict:
    """Return tokenizer.json of what parse() returned. It gives the ids that SentencePiece gives."""
    trainer = parsed.trainer_spec
    special = [parsed.pieces[i].piece for i in (trainer.unk_id, trainer.bos_id, trainer.eos_id)]
    bos = special[1]
    spaces = [_replace("String", " ", SPACE)]
    if parsed.normalizer_spec.remove_extra_whitespaces:
        spaces = [_replace("Regex", "\\A +| +\\z", ""), _replace("Regex", " {2,}", " "), *spaces]
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    marks = [{"SpecialToken": {"id": bos, "type_id": i}} for i in (0, 1)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, piece in sorted(
                zip((trainer.unk_id, trainer.bos_id, trainer.eos_id), special, strict=True)
            )
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*spaces[:-1], {"type": "Prepend", "prepend": SPACE}, spaces[-1]],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [marks[0], first],
            "pair": [marks[0], first, marks[1], second],
            "special_tokens": {bos: {"id": bos, "ids": [trainer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace("String", SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": special[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {p.piece: i for i, p in enumerate(parsed.pieces)},
            "merges": _merges(parsed),
        },
    }


def _replace(kind: str, pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _merges(parsed) -> list[list[str]]:
    """Return each pair of pieces that makes a third, the best first.

    SentencePiece takes, of all pairs in a text, the one whose result has the highest score, and of
    equals the leftmost. In runs of one character, that is the one whose left part is the longest.
    """
    scores = {p.piece: p.score for p in parsed.pieces if p.type == NORMAL}
    pairs = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [[left, right] for _, _, left, right in sorted(pairs)]


def from_hugging_face(tokenizer: dict, bos_id: int, eos_id: int) -> bytes:
    """Undo hugging_face(), also for a tokenizer.json as transformers 5 writes it, which differs for
    texts that begin with a space. Raise ValueError for what has no inverse."""
    model = tokenizer["model"]
    if (model["type"], model["byte_fallback"]) != ("BPE", True):
        raise ValueError("its model is not BPE with byte_fallback, as LLaMA's is")
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    ids = model["vocab"] | {piece: token["id"] for piece, token in added.items()}
    pieces = sorted(ids, key=lambda piece: ids[piece])
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError("the ids of its tokens are not 0, 1, 2 and so on")
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    ranks = {piece: i for i, piece in enumerate(dict.fromkeys(map("".join, merges)))}
    unknown = model["unk_token"] or "<unk>"

    def kind(piece: str) -> int:
        if piece == unknown:
            return UNKNOWN
        if piece in added:
            return CONTROL if added[piece]["special"] else USER_DEFINED
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return BYTE
        return NORMAL if len(piece) == 1 or piece in ranks else UNUSED

    normalizer, split = tokenizer["normalizer"], tokenizer["pre_tokenizer"]
    made = sentencepiece(
        pieces,
        [-float(ranks.get(piece, len(ranks))) for piece in pieces],
        [kind(piece) for piece in pieces],
        {"unk_id": ids[unknown], "bos_id": bos_id, "eos_id": eos_id},
        extra_spaces=normalizer is not None and len(normalizer["normalizers"]) > 2,
    )
    again = hugging_face(parse(made))
    if (normalizer, split) not in ((again["normalizer"], None), (None, METASPACE)):
        raise ValueError("its normalizer or pre_tokenizer is not LLaMA's")
    if not set(merges).issuperset(map(tuple, again["model"]["merges"])):
        raise ValueError("its merges leave out some that SentencePiece would make")
    return made


def sentencepiece(
    pieces: list[str],
    scores: list[float],
    types: list[int],
    special: dict[str, int],
    extra_spaces: bool,
) -> bytes:
    """Return a SentencePiece model of LLaMA's kind. special: unk_id, bos_id and eos_id.

    extra_spaces: whether they are removed.
    """
    proto = _proto()
    model = proto.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.CopyFrom(
        proto.TrainerSpec(
            model_type=proto.TrainerSpec.BPE,
            vocab_size=len(pieces),
            byte_fallback=True,
            pad_id=-1,
            **special,
        )
    )
    model.normalizer_spec.CopyFrom(
        proto.NormalizerSpec(
            name="identity",
            precompiled_charsmap=b"",
            add_dummy_prefix=True,
            escape_whitespaces=True,
            remove_extra_whitespaces=extra_spaces,
        )
    )
    return model.SerializeToString()
