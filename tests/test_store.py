"""The token store: reproducible, complete, and damage named."""

import collections
import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.damage import flip_a_byte
from helpers.stores import (
    BOS,
    EOS,
    all_tokens,
    data_sharding,
    files_of,
    made_up_tokens,
    write_jsonl,
)
from llama_jax.config import UserError
from llama_jax.data import batches, documents, store, tokenizer
from llama_jax.data.prepare import prepare

DAMAGES = {
    "a flipped bit": flip_a_byte,
    "a truncated file": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "an empty file": lambda path: path.write_bytes(b""),
    "a missing file": lambda path: path.unlink(),
    "a missing directory": lambda path: shutil.rmtree(path.parent.parent),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_source_and_file(made_up, damage):
    DAMAGES[damage](Path(made_up.store) / "long/train-00001/c/0")
    with pytest.raises(UserError, match=r"(?s)source long .*long/train-00001/"):
        stream = batches.train_batches(made_up, 1, data_sharding(), itertools.count())
        for _ in range(100):
            next(stream)


def test_an_index_that_disagrees_with_its_arrays_is_an_error(made_up):
    store.write_array(made_up.store, "short/train-00000", made_up_tokens(500, 1))
    with pytest.raises(UserError, match="source short .* 500 tokens, its index 900"):
        batches.TrainRows(made_up)


def test_missing_store_says_how_to_make_it(made_up):
    data = dataclasses.replace(made_up, store=made_up.store + "/no")
    assert store.exists(made_up) and not store.exists(data)
    with pytest.raises(UserError, match=r"does not exist .* llama-jax prepare EXPERIMENT"):
        store.read_index(data)


def test_store_is_reproducible_and_resumes_after_losing_shards(tiny_data, tmp_path, capsys):
    data = dataclasses.replace(tiny_data, store=f"file://{tmp_path}/again")
    prepare(data, num_workers=1)
    made = files_of(tmp_path / "again")
    assert made == files_of(tiny_data.store)
    assert "verified" not in capsys.readouterr().out

    shutil.rmtree(tmp_path / "again/github/train-00000")
    (tmp_path / "again/books/train-00001.json").unlink()
    (tmp_path / "again/books/train.json").unlink()
    flip_a_byte(tmp_path / "again/stackexchange/train-00000/c/0")
    (tmp_path / "again/stackexchange/train-00001/c/0").unlink()
    store.write_array(data.store, "stackexchange/validation-00000", made_up_tokens(500, 0))
    prepare(data, num_workers=1)
    assert files_of(tmp_path / "again") == made
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "verified" not in line] == [
        "github/train-00000",
        "books/train-00001",
        "stackexchange/train-00000",
        "stackexchange/train-00001",
        "stackexchange/validation-00000",
    ]


def test_store_holds_every_token_of_every_document(tiny_data):
    """Against sentencepiece alone: nothing is cut, added or lost."""
    processor = tokenizer.load(tiny_data.tokenizer)
    for source, _ in tiny_data.mixture:
        for split in store.SPLITS:
            expected = collections.Counter(
                (BOS, *processor.encode(text), EOS)
                for path in documents.files(tiny_data, source, split)
                for text in documents.read(path)
            )
            tokens = all_tokens(tiny_data, source, split)
            found = np.split(tokens, np.flatnonzero(tokens == BOS)[1:])
            assert collections.Counter(tuple(document.tolist()) for document in found) == expected
            index = store.read_split(tiny_data, source, split)
            assert index.num_tokens == sum(len(d) * n for d, n in expected.items())
            assert index.vocab_size == processor.vocab_size() == 512
            assert sum(shard.num_documents for shard in index.shards) == expected.total()


def test_store_of_another_corpus_or_tokenizer_is_refused(tiny_data, tmp_path):
    other = dataclasses.replace(
        tiny_data, corpus=str(tmp_path / "corpus"), store=str(tmp_path / "store")
    )
    shutil.copytree(tiny_data.corpus, other.corpus)
    shutil.copytree(tiny_data.store, other.store)
    prepare(other, num_workers=1)  # the same files elsewhere are the same corpus
    (Path(other.corpus) / "books/train-2.jsonl").write_text('{"text": "one more"}\n')
    with pytest.raises(UserError, match="store/books/train.json was not made from .*delete this"):
        prepare(other, num_workers=1)
    (Path(other.corpus) / "books/train-2.jsonl").unlink()
    write_jsonl(Path(other.corpus) / "books/train-0.jsonl", ["changed"])
    with pytest.raises(UserError, match="store/books/train-00000.json was not made from"):
        prepare(other, num_workers=1)
    model = tmp_path / "other.model"
    tokenizer.train(tiny_data, vocab_size=500, out=model, max_bytes=100_000)
    with pytest.raises(UserError, match=r"with data.tokenizer='.*other.model'; set"):
        prepare(dataclasses.replace(tiny_data, tokenizer=str(model)), num_workers=1)


def test_digest_is_of_the_tokens_alone(tiny_data, tmp_path):
    digest = store.digest(tiny_data)
    rates = dataclasses.replace(tiny_data, mixture=tuple((s, 1 / 3) for s, _ in tiny_data.mixture))
    assert store.digest(dataclasses.replace(rates, seed=3, seq_len=128)) == digest
    fewer = dataclasses.replace(tiny_data, mixture=tiny_data.mixture[:2])
    assert store.digest(fewer) != digest
