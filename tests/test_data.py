"""The data room: corpus -> tokenizer -> seqio Tasks -> token store -> global batches."""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
import sentencepiece
from conftest import write_jsonl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import BATCH_KEYS, LLAMA_MIXTURE, DataConfig, UserError
from llama_jax.data import batches, documents, store, tasks, tokenizer
from llama_jax.data.prepare import prepare

BOS, EOS = 1, 2


ROWS = P(None, "fsdp", None)


def data_sharding(spec=ROWS, devices=None) -> NamedSharding:
    axes = (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=axes, devices=devices)
    return NamedSharding(mesh, spec)


def take(data: DataConfig, steps: range, micro_batches: int = 1) -> list[dict[str, np.ndarray]]:
    stream = batches.train_batches(
        data, micro_batches, data_sharding(), itertools.count(steps.start)
    )
    taken = [jax.tree.map(np.asarray, next(stream)) for _ in steps]
    stream.close()
    return taken


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- A store of made-up tokens: fixed for ever, and made without TensorFlow

MADE_UP = {"long": [3000, 2001], "short": [900], "other": [0, 1500]}  # tokens of each train shard


@pytest.fixture
def made_up(tmp_path) -> DataConfig:
    data = DataConfig(
        mixture=(("long", 0.5), ("short", 0.3), ("other", 0.2)),
        store=str(tmp_path / "store"),
        seq_len=16,
        batch_size=8,
    )
    for number, (source, sizes) in enumerate(MADE_UP.items()):
        write_split(data, source, "train", [made_up_tokens(size, number) for size in sizes])
        write_split(data, source, "validation", [made_up_tokens(300, number + 10)])
    return data


def made_up_tokens(size: int, seed: int) -> np.ndarray:
    """Documents of 37 tokens, no two of which are alike."""
    i = np.arange(size)
    tokens = 3 + (i * i * 7919 + i * 104729 + seed * 31337) % 9973
    tokens[0::37], tokens[36::37] = BOS, EOS
    return tokens.astype(np.uint16)


def write_split(data: DataConfig, source: str, split: str, arrays: list[np.ndarray]) -> None:
    for number, tokens in enumerate(arrays):
        store.write_array(data.store, store.shard_path(source, split, number), tokens)
    shards = tuple(
        store.Shard("file", "", "", 1, len(tokens), hashlib.sha256(tokens).hexdigest())
        for tokens in arrays
    )
    index = store.Split(vocab_size=10_000, bos_id=BOS, eos_id=EOS, shards=shards)
    store.write_json(data.store, store.index_path(source, split), dataclasses.asdict(index))


def all_tokens(data: DataConfig, source: str, split: str) -> np.ndarray:
    return store.open_tokens(data, source, split).read().result().astype(np.int32)


# ---- Batches


@pytest.mark.parametrize("num_hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("spec", [ROWS, P("tensor", "fsdp", None), P(None, "fsdp", "tensor")])
def test_batch_is_the_same_on_any_number_of_hosts(made_up, num_hosts, spec):
    """Each simulated host reads what its devices need, and only that; together it is the batch."""
    shape, step = (2, 4, made_up.seq_len), 5
    (whole,) = take(made_up, range(step, step + 1), micro_batches=2)
    rows = batches.TrainRows(made_up)
    order = np.random.default_rng(0).permutation(8)  # neither in the order of the mesh
    sharding = data_sharding(spec, devices=[jax.devices()[i] for i in order])
    index_of = sharding.devices_indices_map(shape)
    for host in np.split(np.array(jax.devices()), num_hosts):
        indices = [index_of[device] for device in host]
        reads = collections.Counter()

        def read(r, reads=reads):
            reads[r] += 1
            return rows[step * made_up.batch_size + r]

        with ThreadPoolExecutor(4) as readers:
            part = batches.read_slices(shape, indices, read, readers)
        needed = {r for i in indices for r in np.arange(8).reshape(2, 4)[i[:2]].ravel()}
        assert reads == {r: 1 for r in needed}
        for index in indices:
            assert_equal({k: part[k][index] for k in part}, {k: whole[k][index] for k in whole})


def test_seeking_gives_what_running_through_gives(made_up):
    through = take(made_up, range(0, 30))
    for start in (1, 7, 29):
        (there,) = take(made_up, range(start, start + 1))
        assert_equal(there, through[start])
    assert len({batch["tokens"].tobytes() for batch in through}) == 30


def test_micro_batches_are_the_same_rows(made_up):
    (one,) = take(made_up, range(3, 4), micro_batches=1)
    (two,) = take(made_up, range(3, 4), micro_batches=2)
    assert two["tokens"].shape == (2, 4, 16)
    assert_equal({k: v.reshape(1, 8, 16) for k, v in two.items()}, one)


def test_batches_are_int32_arrays_in_the_callers_sharding(made_up):
    stream = batches.train_batches(made_up, 2, data_sharding(), itertools.count())
    batch = next(stream)
    stream.close()
    assert set(batch) == {"tokens", "targets", "segments", "positions"}
    for array in batch.values():
        assert array.dtype == np.int32
        assert array.sharding == data_sharding()


def test_order_of_the_data_has_not_changed(made_up):
    """A changed digest means that a run cannot be resumed exactly: do not update it lightly."""
    hasher = hashlib.sha256()
    for batch in take(made_up, range(100)):  # 800 rows: several epochs of every source
        for key in ("tokens", "targets", "segments", "positions"):
            hasher.update(batch[key].astype("<i4").tobytes())
    assert hasher.hexdigest() == GOLDEN


GOLDEN = "b949b2a3c1b4b9a90c4c1e98578c8dd3df56b8d2b2fae5c7819ade9ac2757097"


def test_mixture_is_exact(made_up):
    rows = batches.TrainRows(made_up)
    sources = [rows.locate(g)[0] for g in range(200)]
    assert collections.Counter(sources) == {"long": 100, "short": 60, "other": 40}
    for g in range(1, 200):
        for source, rate in made_up.mixture:
            assert abs(sources[:g].count(source) - g * rate) < 1.5


def test_interleave_is_grains_rule_where_grain_is_exact():
    names, rates = zip(*LLAMA_MIXTURE, strict=True)
    numbered = [grain.MapDataset.source([i]).repeat() for i in range(len(names))]
    mixed = grain.MapDataset.mix(numbered, rates)
    interleave = batches.Interleave(rates)
    seen = collections.Counter()
    for g in range(1000):
        source, earlier = interleave[g]
        assert source == mixed[g]
        assert earlier == seen[source]
        seen[source] += 1
    assert [seen[i] for i in range(7)] == [670, 150, 45, 45, 45, 25, 20]
    assert interleave[10**12][1] > 10**10


def test_interleave_is_exact_where_grain_rounds():
    rates = (0.7, 0.2, 0.07, 0.03)
    counts = collections.Counter(batches.Interleave(rates)[g][0] for g in range(10_000))
    assert [counts[i] for i in range(4)] == [7000, 2000, 700, 300]


def test_rates_are_those_of_the_seqio_mixture(tiny_data):
    mixture = tasks.register(tiny_data)
    rates = {task.name.rpartition("_")[0]: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == dict(tiny_data.mixture)
    rows = batches.TrainRows(tiny_data)
    counts = collections.Counter(rows.locate(g)[0] for g in range(200))
    assert counts == {source: round(200 * rate) for source, rate in rates.items()}


def test_every_window_once_per_epoch_and_another_order_in_the_next(made_up):
    rows = batches.TrainRows(made_up)
    windows = collections.defaultdict(list)
    for g in range(2500):
        source, window = rows.locate(g)
        windows[source].append(window)
    for source, sizes in MADE_UP.items():
        size = (sum(sizes) - 1) // made_up.seq_len
        first, second = windows[source][:size], windows[source][size : 2 * size]
        assert sorted(first) == sorted(second) == list(range(size))
        assert first != second != sorted(second) != first


def test_another_seed_is_another_order(made_up):
    (one,) = take(made_up, range(1))
    (other,) = take(dataclasses.replace(made_up, seed=1), range(1))
    assert (one["tokens"] != other["tokens"]).any()


def test_describe_says_where_the_rows_are(made_up):
    (batch,) = take(made_up, range(9, 10))
    for row, line in zip(batch["tokens"][0], batches.describe(made_up, 9), strict=True):
        name, source, _, window, _, span = line.replace(",", "").split()[1:]
        start, end = map(int, span.split(".."))
        assert start == int(window) * made_up.seq_len
        np.testing.assert_array_equal(all_tokens(made_up, source, "train")[start:end], row)


def plain_row(window: list[int], across: bool) -> dict[str, list[int]]:
    row = {"tokens": [], "targets": [], "segments": [], "positions": []}
    segment, position = 1, 0
    for i, (token, target) in enumerate(itertools.pairwise(window)):
        if token == BOS and i > 0 and not across:
            segment, position = segment + 1, 0
        row["tokens"].append(token)
        row["targets"].append(-1 if target == BOS else target)
        row["segments"].append(segment)
        row["positions"].append(position)
        position += 1
    return row


@pytest.mark.parametrize("across", [False, True])
def test_rows_equal_a_plain_and_obvious_implementation(across):
    rng = np.random.default_rng(0)
    for _ in range(200):
        window = rng.choice([BOS, EOS, 5, 6, 7], size=18).astype(np.int32)
        row = batches.make_row(window, BOS, attend_across_documents=across)
        assert {k: v.tolist() for k, v in row.items()} == plain_row(window.tolist(), across)


@pytest.mark.parametrize("across", [False, True])
def test_only_the_first_token_of_a_document_is_not_predicted(tiny_data, across):
    data = dataclasses.replace(tiny_data, attend_across_documents=across)
    windows = batches.Windows(data, "books", "train")
    tokens = all_tokens(data, "books", "train")
    for k in range(len(windows)):
        following = tokens[k * 64 + 1 : k * 64 + 65]
        expected = np.where(following == BOS, -1, following)
        np.testing.assert_array_equal(windows[k]["targets"], expected)
    assert (tokens == BOS).sum() > 10


def test_validation_rows_come_in_order_and_the_last_batch_is_padded(made_up):
    sharding = data_sharding(P("fsdp", None))
    read = list(batches.validation_batches(made_up, "short", 10, 4, sharding))
    joined = {k: np.concatenate([np.asarray(b[k]) for b in read]) for k in read[0]}
    assert joined["tokens"].shape == (12, 16)
    tokens = all_tokens(made_up, "short", "validation")
    np.testing.assert_array_equal(joined["tokens"][:10], tokens[:160].reshape(10, 16))
    assert (joined["targets"][10:] == -1).all() and (joined["segments"][10:] == 0).all()
    assert (joined["targets"][:10] != -1).any(axis=1).all()
    assert len(list(batches.validation_batches(made_up, "short", 10**6, 4, sharding))) == 5


def test_reading_thread_ends_with_the_iterator(made_up):
    before = threading.active_count()
    stream = batches.train_batches(made_up, 1, data_sharding(), itertools.count())
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_too_long_a_seq_len_is_refused(made_up):
    long = dataclasses.replace(made_up, seq_len=900)
    with pytest.raises(UserError, match=r"data.seq_len: got 900, but source short holds 900 train"):
        batches.train_batches(long, 1, data_sharding(), itertools.count())
    batches.train_batches(
        dataclasses.replace(made_up, seq_len=899), 1, data_sharding(), itertools.count()
    )


def test_training_needs_no_tensorflow():
    code = (
        "import sys; from llama_jax.data import batches, store, tokenizer; "
        "sys.exit(str([m for m in ('tensorflow', 'seqio', 'tensorflow_text') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"


# ---- Damage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


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


# ---- Store


def files_of(directory: str) -> dict[str, bytes]:
    root = Path(directory)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


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


@pytest.mark.slow
def test_store_is_the_same_from_two_workers(tiny_data, tmp_path):
    prepare(dataclasses.replace(tiny_data, store=str(tmp_path)), num_workers=2)
    assert files_of(tmp_path) == files_of(tiny_data.store)


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


# ---- Corpus

GOOD = b'{"text": "good"}\n'
BAD_LINES = {
    "broken JSON": b'{"text": "bad\n',
    "no text": b'{"content": "bad"}\n',
    "text of another type": b'{"text": 3}\n',
    "no object": b'"text"\n',
    "not UTF-8": b'{"text": "\xff\xfe"}\n',
    "half a surrogate pair": b'{"text": "\\ud83e"}\n',
}


def little_corpus(tiny_data, tmp_path, train: bytes) -> DataConfig:
    (tmp_path / "corpus/essays").mkdir(parents=True)
    (tmp_path / "corpus/essays/train.jsonl").write_bytes(train)
    (tmp_path / "corpus/essays/validation.jsonl").write_bytes(GOOD)
    return dataclasses.replace(
        tiny_data,
        mixture=(("essays", 1.0),),
        corpus=str(tmp_path / "corpus"),
        store=str(tmp_path / "store"),
    )


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_line_is_an_error_with_file_and_line(tiny_data, tmp_path, bad):
    data = little_corpus(tiny_data, tmp_path, GOOD * 2 + BAD_LINES[bad] + GOOD)
    with pytest.raises(UserError, match=r"corpus/essays/train.jsonl:3: expected") as error:
        prepare(data, num_workers=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store/essays/train.json").exists()


def test_truncated_gzip_is_an_error(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, GOOD)
    path = tmp_path / "corpus/essays/train-1.jsonl.gz"
    write_jsonl(path, ["good"] * 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"essays/train-1.jsonl.gz: cannot be read after line"):
        prepare(data, num_workers=1)


def test_empty_documents_are_dropped(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, b'{"text": ""}\n' + GOOD + b'{"text": " \\n"}\n')
    (tmp_path / "corpus/essays/train-1.jsonl").write_bytes(b"")
    for _ in range(2):  # the second time from what is there
        prepare(data, num_workers=1)
    tokens = [BOS, *tokenizer.load(data.tokenizer).encode("good"), EOS]
    assert all_tokens(data, "essays", "train").tolist() == tokens


def test_missing_source_and_missing_split_are_errors(tiny_data, tmp_path):
    unknown = dataclasses.replace(tiny_data, mixture=(("nonesuch", 1.0),))
    with pytest.raises(UserError, match="data.mixture: source 'nonesuch' has no directory"):
        prepare(unknown, num_workers=1)
    data = little_corpus(tiny_data, tmp_path, GOOD)
    (tmp_path / "corpus/essays/validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"essays has no validation\*.jsonl"):
        prepare(data, num_workers=1)


def test_embedded_corpus_has_every_source_of_the_paper_and_separate_splits():
    data = DataConfig(store="", batch_size=1)
    for source, _ in LLAMA_MIXTURE:
        train, validation = (
            {text for path in documents.files(data, source, split) for text in documents.read(path)}
            for split in store.SPLITS
        )
        assert train and validation
        assert not train & validation


def test_mixture_is_an_ordinary_seqio_mixture(tiny_data):
    import seqio

    mixture = tasks.register(tiny_data)
    assert tasks.register(tiny_data) is mixture
    assert seqio.get_mixture_or_task(mixture.name) is mixture
    dataset = seqio.get_dataset(
        mixture.name,
        task_feature_lengths={"targets": 32},
        dataset_split="train",
        feature_converter=seqio.DecoderFeatureConverter(pack=True),
    )
    batch = next(dataset.as_numpy_iterator())
    assert batch["decoder_target_tokens"][0] == BOS

    more = dataclasses.replace(tiny_data, mixture=(("github", 1.0),))
    assert tasks.register(more) is not mixture
    assert tasks.register(more).tasks[0] in mixture.tasks


# ---- Tokenizer


@pytest.mark.parametrize("text", tokenizer.MUST_SURVIVE)
def test_tokenizer_gives_text_back(tiny_data, text):
    processor = tokenizer.load(tiny_data.tokenizer)
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert processor.unk_id() not in ids


def test_tokenizer_is_llamas_kind(tiny_data):
    processor = tokenizer.load(tiny_data.tokenizer)
    ids = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    assert ids == (0, 1, 2, -1)
    assert [processor.id_to_piece(i) for i in (3, 258)] == ["<0x00>", "<0xFF>"]
    assert processor.encode("a\nb", out_type=str) == ["\u2581a", "<0x0A>", "b"]
    assert processor.encode("10 23", out_type=str) == ["\u2581", "1", "0", "\u2581", "2", "3"]


def test_tokenizer_training_is_deterministic_and_follows_the_mixture(tiny_data, tmp_path):
    def model(mixture) -> bytes:
        data = dataclasses.replace(tiny_data, mixture=mixture)
        tokenizer.train(data, vocab_size=512, out=tmp_path / "model", max_bytes=300_000)
        return (tmp_path / "model").read_bytes()

    assert model(tiny_data.mixture) == Path(tiny_data.tokenizer).read_bytes()
    code = next(documents.read(documents.files(tiny_data, "github", "validation")[0]))
    lengths = [
        len(sentencepiece.SentencePieceProcessor(model_proto=model(mixture)).encode(code))
        for mixture in (
            (("github", 0.99), ("books", 0.01)),
            (("github", 0.5), ("books", 0.5)),
            (("github", 0.01), ("books", 0.99)),
        )
    ]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("kind", ["nmt_nfkc", "byte_fallback", "split_digits"])
def test_tokenizer_that_loses_text_is_refused(tiny_data, tmp_path, monkeypatch, kind):
    lossy = {"normalization_rule_name": kind} if kind == "nmt_nfkc" else {kind: False}
    monkeypatch.setattr(tokenizer, "SETTINGS", tokenizer.SETTINGS | lossy)
    with pytest.raises(UserError, match="^tokenizer: "):
        tokenizer.train(tiny_data, vocab_size=512, out=tmp_path / "model", max_bytes=300_000)
    assert not (tmp_path / "model").exists()


def test_impossible_vocabulary_and_unusable_model_are_user_errors(tiny_data, tmp_path):
    for vocab_size in (100, 10**6):
        with pytest.raises(UserError, match=f"vocab_size: got {vocab_size}, "):
            tokenizer.train(tiny_data, vocab_size, out=tmp_path / "model", max_bytes=100_000)
    with pytest.raises(UserError, match="data.tokenizer: no file .*/model"):
        tokenizer.load(str(tmp_path / "model"))
    for content in (b"", b"not a model"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(UserError, match="data.tokenizer: .*/model "):
            tokenizer.load(str(tmp_path / "model"))


# ---- A pod of two processes


@pytest.mark.slow
def test_two_real_processes_give_the_batches_of_one(made_up, tmp_path):
    expected = take(made_up, range(2, 5), micro_batches=2)
    arguments = [sys.executable, "-c", WORKER, json.dumps(dataclasses.asdict(made_up))]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen([*arguments, str(i), str(tmp_path), port], env=environment)
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    seen = [np.zeros((3, 2, 4, 16), np.int32) for _ in range(4)]
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as parts:
            for name, part in parts.items():
                step, key, *bounds = map(int, name.split())
                a, b, c, d = bounds
                seen[key][step, a:b, c:d] = part
    for step, batch in enumerate(expected):
        for key, name in enumerate(BATCH_KEYS):
            np.testing.assert_array_equal(seen[key][step], batch[name])


WORKER = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from llama_jax.config import BATCH_KEYS, DataConfig
from llama_jax.data import batches

fields, process, out, port = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
fields = json.loads(fields)
data = DataConfig(**fields | {"mixture": tuple(map(tuple, fields["mixture"]))})
axes = (AxisType.Explicit,) * 2
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=axes)
sharding = NamedSharding(mesh, P(None, "fsdp", None))
stream = batches.train_batches(data, 2, sharding, itertools.count(2))
parts = {}
for step in range(3):
    batch = next(stream)
    for key, name in enumerate(BATCH_KEYS):
        for shard in batch[name].addressable_shards:
            a, b, _ = [s.indices(n)[:2] for s, n in zip(shard.index, batch[name].shape)]
            parts[f"{step} {key} {a[0]} {a[1]} {b[0]} {b[1]}"] = np.asarray(shard.data)
np.savez(f"{out}/{process}.npz", **parts)
"""
