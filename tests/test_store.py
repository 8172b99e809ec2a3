"""The token store: reproducible, complete, and damage named."""

import collections
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import stores
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
from llama_jax.data import batches, documents, store, tokenizer, tokenizer_training
from llama_jax.data.cache import cache

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


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


def edit(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def with_shard(index: dict, **fields) -> dict:
    return index | {"shards": [index["shards"][0] | fields, *index["shards"][1:]]}


NOT_AS_PREPARED = {
    "two arrays": lambda s: swap(s / "long/train-00000", s / "long/train-00001"),
    "two arrays' data": lambda s: swap(s / "long/train-00000/c/0", s / "long/train-00001/c/0"),
    "two arrays and their checksums": lambda s: (
        swap(s / "long/train-00000", s / "long/train-00001"),
        swap(s / "long/train-00000.crc32", s / "long/train-00001.crc32"),
    ),
    "an array with checksums of its own": lambda s: store.write_tokens(
        str(s), "long/train-00000", made_up_tokens(3000, 5)
    ),
    "an array rewritten": lambda s: store.write_array(
        str(s), "long/train-00000", np.full(3000, 60_000, np.uint16)
    ),
    "the sha256 in the index": lambda s: edit(
        s / "long/train.json", lambda index: with_shard(index, sha256="0" * 64)
    ),
    "no checksums": lambda s: shutil.rmtree(s / "long/train-00000.crc32"),
}


@pytest.mark.parametrize("change", NOT_AS_PREPARED)
def test_a_store_that_is_not_as_it_was_written_is_named(made_up, change):
    """Arrays of one size, so that nothing but what they hold tells them apart."""
    stores.write_split(made_up, "long", "train", [made_up_tokens(3000, k) for k in (0, 1)])
    NOT_AS_PREPARED[change](Path(made_up.store))
    with pytest.raises(UserError, match=r"source long .*long/train-00000") as e:
        windows = batches.Windows(made_up, "long", "train")
        windows[0]
    assert "\n" not in str(e.value)


def test_only_the_block_that_was_changed_is_refused(made_up):
    tokens = made_up_tokens(3 * store.BLOCK_TOKENS, 0)
    stores.write_split(made_up, "long", "train", [tokens])
    changed = tokens.copy()
    changed[store.BLOCK_TOKENS] += 1
    store.write_array(made_up.store, "long/train-00000", changed)
    found = store.Tokens(made_up, "long", "train")
    for start, stop in ((0, store.BLOCK_TOKENS), (2 * store.BLOCK_TOKENS, len(found))):
        np.testing.assert_array_equal(found.read(start, stop), tokens[start:stop])
    for start in (store.BLOCK_TOKENS - 1, 2 * store.BLOCK_TOKENS - 1):
        with pytest.raises(UserError, match="holds other tokens than its index, from"):
            found.read(start, start + 2)


def test_tokens_outside_the_vocabulary_are_refused(made_up):
    stores.write_split(made_up, "long", "train", [np.full(100, 10_000, np.uint16)])
    with pytest.raises(UserError, match="source long .* holds token 10000 of 10000"):
        batches.Windows(made_up, "long", "train")[0]


FORMS = {
    "a list": lambda index: [index],
    "a number": lambda index: 3,
    "a key less": lambda index: {k: v for k, v in index.items() if k != "bos_id"},
    "a key more": lambda index: index | {"x": 1},
    "a shard is a list": lambda index: index | {"shards": [[]]},
    "shards are text": lambda index: index | {"shards": "x"},
    "a shard's key less": lambda index: index | {"shards": [{"file": "x"}]},
    "text for a number": lambda index: index | {"vocab_size": "512"},
    "negative": lambda index: with_shard(index, num_tokens=-1),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_index_of_another_form_is_one_line(made_up, form):
    edit(Path(made_up.store) / "short/validation.json", FORMS[form])
    with pytest.raises(UserError, match="store/short/validation.json is not what llama-jax") as e:
        store.digest(made_up)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("field", ["vocab_size", "bos_id", "eos_id"])
def test_the_index_has_the_numbers_of_the_tokenizer(tiny_data, tmp_path, field):
    data = dataclasses.replace(tiny_data, store=str(tmp_path / "store"))
    shutil.copytree(tiny_data.store, data.store)
    edit(Path(data.store) / "books/validation.json", lambda index: index | {field: 7})
    with pytest.raises(UserError, match=f"books/validation.json says .*{field} 7.* cache"):
        store.check_tokenizer(data, 512)
    store.check_tokenizer(tiny_data, 512)


def test_held_out_text_is_read_before_training(made_up):
    batches.check_held_out(made_up, 8)
    path = Path(made_up.store) / "other/validation-00000/c/0"
    whole = path.read_bytes()
    flip_a_byte(path)
    with pytest.raises(UserError, match="(?s)source other .*other/validation-00000/"):
        batches.check_held_out(made_up, 8)
    path.write_bytes(whole)
    stores.write_split(made_up, "other", "validation", [made_up_tokens(16, 1)])
    with pytest.raises(UserError, match="source other holds 16 validation tokens"):
        batches.check_held_out(made_up, 8)


def test_missing_store_says_how_to_make_it(made_up):
    data = dataclasses.replace(made_up, store=made_up.store + "/no")
    assert store.exists(made_up) and not store.exists(data)
    with pytest.raises(UserError, match=r"does not exist .* llama-jax cache EXPERIMENT"):
        store.read_index(data)


def test_store_is_reproducible_and_resumes_after_losing_shards(tiny_data, tmp_path, capsys):
    data = dataclasses.replace(tiny_data, store=f"file://{tmp_path}/again")
    cache(data, num_workers=1)
    made = files_of(tmp_path / "again")
    assert made == files_of(tiny_data.store)
    assert "verified" not in capsys.readouterr().out

    shutil.rmtree(tmp_path / "again/github/train-00000")
    (tmp_path / "again/books/train-00001.json").unlink()
    (tmp_path / "again/books/train.json").unlink()
    flip_a_byte(tmp_path / "again/stackexchange/train-00000/c/0")
    (tmp_path / "again/stackexchange/train-00001/c/0").unlink()
    store.write_array(data.store, "stackexchange/validation-00000", made_up_tokens(500, 0))
    cache(data, num_workers=1)
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
    vocabulary = tokenizer.load(tiny_data.tokenizer)
    for source, _ in tiny_data.mixture:
        for split in store.SPLITS:
            expected = collections.Counter(
                (BOS, *vocabulary.encode(text), EOS)
                for part in documents.parts(tiny_data, source, split)
                for text, _ in documents.read(part)
            )
            tokens = all_tokens(tiny_data, source, split)
            found = np.split(tokens, np.flatnonzero(tokens == BOS)[1:])
            assert collections.Counter(tuple(document.tolist()) for document in found) == expected
            index = store.read_split(tiny_data, source, split)
            assert index.num_tokens == sum(len(d) * n for d, n in expected.items())
            assert index.vocab_size == vocabulary.vocab_size == 512
            assert sum(shard.num_documents for shard in index.shards) == expected.total()


def test_store_of_another_corpus_or_tokenizer_is_refused(tiny_data, tmp_path):
    other = dataclasses.replace(
        tiny_data, corpus=str(tmp_path / "corpus"), store=str(tmp_path / "store")
    )
    shutil.copytree(tiny_data.corpus, other.corpus)
    shutil.copytree(tiny_data.store, other.store)
    cache(other, num_workers=1)  # the same files elsewhere are the same corpus
    (Path(other.corpus) / "books/train-2.jsonl").write_text('{"text": "one more"}\n')
    with pytest.raises(UserError, match="store/books/train.json was not made from .*delete this"):
        cache(other, num_workers=1)
    (Path(other.corpus) / "books/train-2.jsonl").unlink()
    write_jsonl(Path(other.corpus) / "books/train-0.jsonl", ["changed"])
    with pytest.raises(UserError, match="store/books/train-00000.json was not made from"):
        cache(other, num_workers=1)
    model = tmp_path / "other.model"
    model.write_bytes(tokenizer_training.train(tiny_data, vocab_size=500, max_bytes=100_000))
    with pytest.raises(UserError, match=r"with data.tokenizer='.*other.model'; set"):
        cache(dataclasses.replace(tiny_data, tokenizer=str(model)), num_workers=1)


def test_digest_is_of_the_tokens_alone(tiny_data, tmp_path):
    digest = store.digest(tiny_data)
    rates = dataclasses.replace(tiny_data, mixture=tuple((s, 1 / 3) for s, _ in tiny_data.mixture))
    assert store.digest(dataclasses.replace(rates, seed=3, seq_len=128)) == digest
    fewer = dataclasses.replace(tiny_data, mixture=tiny_data.mixture[:2])
    assert store.digest(fewer) != digest
