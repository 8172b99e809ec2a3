"""Corpora as they are published: layouts, what is held out of them, and the store of them."""

import collections
import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import SHARED
from helpers.published import ROWS, Rows, arrow_stream, corpus, lines, parquet, read, write, zstd
from helpers.stores import BOS, all_tokens
from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, store, tokenizer
from llama_jax.data.cache import cache

# ---- Layouts


LAYOUTS: dict[str, tuple[dict[str, str], str, str, str]] = {
    # what is published -> files by split, its row, where, column
    "RedPajama": (
        {"common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst": "train"},
        '{{"text": {0}, "meta": {{"source": "cc/2019-30/en_head_0000.json.gz/line1"}}}}',
        "common_crawl/*/*.jsonl.zst",
        "text",
    ),
    "SlimPajama": (
        {
            "train/chunk1/example_train_0.jsonl.zst": "train",
            "validation/chunk1/example_holdout_0.jsonl.zst": "validation",
            "test/chunk1/example_holdout_1.jsonl.zst": "",
        },
        '{{"text": {0}, "meta": {{"redpajama_set_name": "RedPajamaBook"}}}}',
        "{split}/*/*.jsonl.zst",
        "text",
    ),
    "Dolma": (
        {"cc_en_head-0000.json.gz": "train", "cc_en_head-0001.json.gz": "train"},
        '{{"id": "x", "text": {0}, "source": "common-crawl", "metadata": {{"url": "u"}}}}',
        "cc_en_head-*.json.gz",
        "text",
    ),
    "FineWeb": (
        {
            "data/CC-MAIN-2013-20/000_00000.parquet": "train",
            "data/CC-MAIN-2013-48/000_00000.parquet": "train",
        },
        '{{"text": {0}, "id": "<urn:uuid:1>", "dump": "CC-MAIN-2013-20", "url": "u"}}',
        "data/*/*.parquet",
        "text",
    ),
    "C4": (
        {
            "en/c4-train.00000-of-01024.json.gz": "train",
            "en/c4-train.00001-of-01024.json.gz": "train",
            "en/c4-validation.00000-of-00008.json.gz": "validation",
        },
        '{{"text": {0}, "timestamp": "2019-04-25T12:57:54Z", "url": "u"}}',
        "en/c4-{split}.*.json.gz",
        "text",
    ),
    "The Stack": (
        {
            "data/python/train-00000-of-00206.parquet": "train",
            "data/c++/train-00000-of-00214.parquet": "train",
        },
        '{{"hexsha": "1", "content": {0}, "lang": "Python"}}',
        "data/*/*.parquet",
        "content",
    ),
    "Wikipedia": (
        {"20231101.en/train-00000-of-00041.parquet": "train"},
        '{{"id": "12", "url": "u", "title": "t", "text": {0}}}',
        "20231101.en/*.parquet",
        "text",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_published_is_read_as_it_lies(tmp_path, name):
    files, row, where, column = LAYOUTS[name]
    expected = collections.defaultdict(set)
    for path, split in files.items():
        texts = [f"{path} {i}" for i in range(20)]
        rows = [json.loads(row.format(json.dumps(text))) for text in texts]
        expected[split] |= {*texts}
        if path.endswith(".parquet"):
            content = parquet(rows)
        else:
            content = zstd(lines(rows)) if path.endswith(".zst") else gzip.compress(lines(rows))
        write(tmp_path / path, content)
    write(tmp_path / "README.md", b"of no interest")
    data = corpus(tmp_path, ("mine", where, column), held_out=0.5)
    train, held_out = ({text for text, _ in read(data, split=split)} for split in store.SPLITS)
    if expected["validation"]:
        assert (train, held_out) == (expected["train"], expected["validation"])
    else:
        assert train and held_out and not train & held_out
        assert train | held_out == expected["train"]


def save_to_disk(directory: Path, rows: Rows) -> None:
    """Write what datasets.Dataset.save_to_disk does, in two files, and what map() leaves there."""
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    write(directory / names[0], arrow_stream(rows[:3]))
    write(directory / names[1], arrow_stream(rows[3:]))
    write(directory / "cache-1f0a7d8b6c0a3d9e.arrow", arrow_stream([{"text": "computed"}]))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    write(directory / "state.json", json.dumps(state).encode())
    write(directory / "dataset_info.json", b"{}")


def test_a_saved_dataset_of_hugging_face_is_read(tmp_path):
    save_to_disk(tmp_path / "one", ROWS)
    data = corpus(tmp_path, ("mine", "one", "text"), held_out=0.3)
    both = [read(data, split=split) for split in store.SPLITS]
    assert all(both) and sorted(sum(both, [])) == [(row["text"], row["id"]) for row in ROWS]
    save_to_disk(tmp_path / "dict/train", ROWS)
    save_to_disk(tmp_path / "dict/validation", ROWS[:4])
    save_to_disk(tmp_path / "dict/test", ROWS[:4])
    splits = {"splits": ["train", "validation", "test"]}
    write(tmp_path / "dict/dataset_dict.json", json.dumps(splits).encode())
    data = corpus(tmp_path, ("mine", "dict", "text"))
    assert [len(read(data, split=split)) for split in store.SPLITS] == [7, 4]


@pytest.fixture(scope="module")
def tfds_home(tmp_path_factory) -> Path:
    """A directory in which TFDS has prepared tiny/en:1.0.0, of ROWS."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    home, text = tmp_path_factory.mktemp("tfds"), tfds.features.Text()
    made = {
        split: {
            "text": [row["text"] for row in ROWS],
            "meta": {"url": [f"{split}{i}" for i in range(len(ROWS))]},
        }
        for split in store.SPLITS
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=str(home),
        config="en",
        features=tfds.features.FeaturesDict({"text": text, "meta": {"url": text}}),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(rows)  # pyright: ignore[reportArgumentType]
            for split, rows in made.items()
        },
    )
    return home


def test_a_dataset_of_tfds_is_read(tfds_home, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(documents.listing, "TFDS_HOME", tfds_home)
    data = corpus(tmp_path, ("mine", "tfds:tiny/en:1.0.0", "text"))
    for split in store.SPLITS:
        expected = {(row["text"], f"{split}{i}") for i, row in enumerate(ROWS)}
        assert {*read(data, split=split)} == expected
    data = dataclasses.replace(data, tokenizer=tiny_data.tokenizer, store=str(tmp_path / "store"))
    cache(data, num_workers=1)
    expected = collections.Counter(row["text"] for row in ROWS)
    assert documents_of(data, "mine", "train") == expected
    with pytest.raises(UserError, match=r':1: .*has no "body"; it has meta.url, text: name'):
        read(corpus(tmp_path, ("mine", "tfds:tiny/en:1.0.0", "body")))


def test_a_file_of_tfds_that_is_cut_between_two_rows_is_an_error(tfds_home, tmp_path):
    """TensorFlow takes it for whole."""
    shutil.copytree(tfds_home / "tiny", tmp_path / "tiny")
    (file,) = (tmp_path / "tiny/en/1.0.0").glob("*-train.tfrecord-*")
    content = file.read_bytes()
    first = 8 + 4 + int.from_bytes(content[:8], "little") + 4  # length, checksum, row, checksum
    data = corpus(tmp_path, ("mine", "tiny/en/1.0.0", "text"))
    assert len(read(data)) == len(ROWS)
    for cut, reason in ((first, "it has 1 rows, and 7 in dataset_info"), (first + 20, ".*trunc")):
        file.write_bytes(content[:cut])
        with pytest.raises(UserError, match=rf"{file.name}: cannot be read after row 1; {reason}"):
            read(data)


WRONG_PLACES = {
    "nothing": ("nowhere", r"source 'mine' has no directory .*/nowhere"),
    "nothing matches": ("*.parquet", r"source 'mine' has no files .*/\*.parquet"),
    "no validation": ("{split}-*.jsonl", r"has no files .*/validation-\*.jsonl; without {split}"),
    "a folder": ("*", r"folder: its ending says nothing that is read: expected .jsonl"),
    "another web": ("s3://bucket/x.jsonl", r"data.sources: got 's3://.*expected a local path"),
    "no version": ("tfds:c4/en", r"got 'tfds:c4/en', expected tfds:NAME\[/CONFIG\]:VERSION"),
    "not prepared": ("tfds:c4/en:3.1.0", r"source 'mine' has no directory .*/c4/en/3.1.0"),
}


@pytest.mark.parametrize("wrong", WRONG_PLACES)
def test_a_place_where_the_source_is_not_is_an_error(tmp_path, wrong):
    where, message = WRONG_PLACES[wrong]
    write(tmp_path / "train-0.jsonl", lines(ROWS))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message) as error:
        read(corpus(tmp_path, ("mine", where, "text")))
    assert "\n" not in str(error.value)


# ---- Held out where there are no validation files


def test_a_text_is_held_out_whatever_file_it_is_in(tmp_path):
    rows = [{"text": f"document {i}"} for i in range(5000)]
    write(tmp_path / "a/train-0.jsonl", lines(rows[:2000]))
    write(tmp_path / "a/train-1.jsonl.gz", gzip.compress(lines(rows[1000:])))
    write(tmp_path / "b/rows.parquet", parquet(rows[::-1]))
    data = corpus(tmp_path, ("a", "a", "text"), ("b", "b/*.parquet", "text"), held_out=0.02)
    train, held_out = ([d.text for d in read(data, "a", split)] for split in store.SPLITS)
    assert not {*train} & {*held_out} and {*train, *held_out} == {row["text"] for row in rows}
    assert len(train) + len(held_out) == 6000  # those of both files twice, on one side
    assert 0.015 < len({*held_out}) / 5000 < 0.025
    assert {d.text for d in read(data, "b", "validation")} == {*held_out}


def test_a_source_too_small_to_hold_anything_out_is_refused(tiny_data, tmp_path):
    write(tmp_path / "corpus/mine.jsonl", lines(ROWS))
    data = dataclasses.replace(
        tiny_data,
        mixture=(("mine", 1.0),),
        corpus=str(tmp_path / "corpus"),
        sources=(("mine", "mine.jsonl", "text"),),
        store=str(tmp_path / "store"),
    )
    with pytest.raises(UserError, match=r"data.held_out: got 0.001, .* none of the 7 .*'mine'"):
        cache(data, num_workers=1)
    cache(dataclasses.replace(data, held_out=0.3, store=str(tmp_path / "other")), num_workers=1)


# ---- Into the store


def documents_of(data: DataConfig, source: str, split: str) -> collections.Counter:
    """What the store holds, decoded by SentencePiece."""
    tokens, vocabulary = all_tokens(data, source, split), tokenizer.load(data.tokenizer)
    starts = np.flatnonzero(tokens == BOS)[1:]
    return collections.Counter(vocabulary.decode(d.tolist()) for d in np.split(tokens, starts))


def test_a_store_of_another_column_or_share_is_refused(tiny_data, tmp_path):
    rows = [row | {"title": f"title {i}"} for i, row in enumerate(ROWS)]
    write(tmp_path / "corpus/mine.parquet", parquet(rows))
    data = dataclasses.replace(
        tiny_data,
        mixture=(("mine", 1.0),),
        corpus=str(tmp_path / "corpus"),
        sources=(("mine", "*.parquet", "text"),),
        held_out=0.3,
        store=str(tmp_path / "store"),
    )
    for _ in range(2):  # the second time from what is there
        cache(data, num_workers=1)
    both = [documents_of(data, "mine", split) for split in store.SPLITS]
    assert all(both) and both[0] + both[1] == collections.Counter(row["text"] for row in ROWS)
    for other in (
        {"sources": (("mine", "*.parquet", "title"),)},
        {"held_out": 0.5},
    ):
        with pytest.raises(
            UserError, match="data.store: .*mine/train-00000.json was not made from"
        ):
            cache(dataclasses.replace(data, **other), num_workers=1)


REAL = SHARED / "corpora"
REAL_FILES = {
    "c4": "c4-sample.01.json.gz",
    "commoncrawl": "dolma_cc_en_head-0091.jsonl.gz",
    "arxiv": "datajuicer_arxiv_redpajama.jsonl",
    "stackexchange": "datajuicer_stack_exchange_redpajama.jsonl",
}


def test_samples_of_published_corpora_come_out_of_the_store_as_they_went_in(tiny_data, tmp_path):
    if missing := [name for name in REAL_FILES.values() if not (REAL / name).exists()]:
        pytest.skip(f"{', '.join(missing)} not here (../shared/data/corpora)")
    data = dataclasses.replace(
        tiny_data,
        corpus=str(REAL),
        mixture=tuple((source, 0.25) for source in REAL_FILES),
        sources=tuple((source, name, "text") for source, name in REAL_FILES.items()),
        held_out=0.5,
        store=str(tmp_path / "store"),
    )
    cache(data, num_workers=1)
    for source, name in REAL_FILES.items():
        content = (REAL / name).read_bytes()
        if name.endswith(".gz"):
            content = gzip.decompress(content)
        texts = [json.loads(line)["text"] for line in content.splitlines()]
        both = [documents_of(data, source, split) for split in store.SPLITS]
        assert both[0] + both[1] == collections.Counter(texts)
