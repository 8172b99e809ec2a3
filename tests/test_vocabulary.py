"""Tokenizers in other formats give SentencePiece's ids."""

import itertools
import json
from pathlib import Path

import pytest
import sentencepiece

from helpers.paths import ROOT, SHARED
from llama_jax.data import documents, tokenizer
from llama_jax.data.tokenizer import EMBEDDED, MUST_SURVIVE
from llama_jax.formats import vocabulary
from llama_jax.loading import load

# Tokenizers

MODELS = [ROOT / "llama_jax/data/tokenizer.model"] + [
    SHARED / name
    for name in (
        "tokenizers/llama_tokenizer.model",
        "tokenizers/mistral_v1_apache2.tokenizer.model",
        "weights/tok512.model",
    )
]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_other_tokenizers_give_sentencepiece_s_ids(path):
    """tokenizer.json by the tokenizers package, and the model that is made of a GGUF's fields."""
    if not path.exists():
        pytest.skip("the tokenizer is not here (../shared/data)")
    tokenizers = pytest.importorskip("tokenizers")
    model = path.read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    parsed = vocabulary.parse(model)
    fast = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.hugging_face(parsed)))
    fast.encode_special_tokens = True  # "<s>" in a text is text
    special = {name: getattr(parsed.trainer_spec, name) for name in ("unk_id", "bos_id", "eos_id")}
    pieces, scores, kinds = (
        [getattr(p, f) for p in parsed.pieces] for f in ("piece", "score", "type")
    )
    extra_spaces = parsed.normalizer_spec.remove_extra_whitespaces
    again = sentencepiece.SentencePieceProcessor(
        model_proto=vocabulary.sentencepiece(pieces, scores, kinds, special, extra_spaces)
    )
    runs = [character * n for character in " =a" for n in range(1, 80)]
    texts = [
        *tokenizer.MUST_SURVIVE,
        "",
        "\n",
        *runs,
        *(f"\n{run}x" for run in runs),
        *corpus_texts(),
    ]
    for text in texts:
        ids = processor.encode(text)
        assert fast.encode(text).ids == [processor.bos_id(), *ids], text
        assert fast.decode(ids, skip_special_tokens=False) == processor.decode(ids), text
        assert again.encode(text) == ids and again.decode(ids) == processor.decode(ids), text


def corpus_texts() -> list[str]:
    data = load(str(ROOT / "experiments/quickstart.py")).data
    return [
        text[:2000]
        for source, _ in data.mixture
        for text, _ in itertools.islice(
            documents.read(documents.parts(data, source, "validation")[0]), 20
        )
    ]


TOKENIZERS = [EMBEDDED, *(SHARED / "tokenizers").glob("[lm]*.model")]


@pytest.mark.parametrize("transformers5", [False, True])
@pytest.mark.parametrize("path", TOKENIZERS, ids=lambda path: path.name)
def test_a_tokenizer_json_gives_the_ids_of_the_tokenizers_package(path, transformers5):
    tokenizers = pytest.importorskip("tokenizers")
    written = vocabulary.hugging_face(vocabulary.parse(path.read_bytes()))
    if transformers5:
        written |= {"normalizer": None, "pre_tokenizer": vocabulary.METASPACE}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(written))
    theirs.encode_special_tokens = True  # "<s>" in a text is text
    ours = sentencepiece.SentencePieceProcessor(
        model_proto=vocabulary.from_hugging_face(written, bos_id=1, eos_id=2)
    )
    for text in (*MUST_SURVIVE, "x" + "x".join(MUST_SURVIVE), Path(__file__).read_text()):
        if not (transformers5 and text.startswith(" ")):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
