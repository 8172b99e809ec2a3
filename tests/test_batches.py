"""Global batches: a function of their number, on any number of hosts and in micro-batches."""

import collections
import dataclasses
import hashlib
import itertools
import logging
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from helpers.damage import flip_a_byte
from helpers.stores import BOS, EOS, MADE_UP, ROWS, all_tokens, assert_equal, data_sharding, take
from llama_jax.config import LLAMA_MIXTURE, UserError
from llama_jax.data import batches, tasks

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
    assert isinstance(stream, Generator)
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
        row = batches.make_row(window, BOS, EOS, attend_across_documents=across)
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
    assert isinstance(stream, Generator)
    stream.close()
    assert threading.active_count() == before


def test_too_long_a_seq_len_is_refused(made_up):
    long = dataclasses.replace(made_up, seq_len=900)
    with pytest.raises(UserError, match=r"data.seq_len: got 900, but source short holds 900 train"):
        batches.train_batches(long, 1, data_sharding(), itertools.count())
    batches.train_batches(
        dataclasses.replace(made_up, seq_len=899), 1, data_sharding(), itertools.count()
    )


# Rows that cannot be read


def test_rows_that_cannot_be_read_are_left_out_up_to_a_number(made_up, caplog):
    """The whole source cannot be read: a third of the rows, which are shown as padding."""
    sound = take(made_up, range(3))
    rows = batches.TrainRows(made_up)
    short = [row for row in range(24) if rows.locate(row)[0] == "short"]
    for file in Path(made_up.store).glob("short/train-00000/**/*"):
        if file.is_file() and "zarr.json" not in file.name:
            flip_a_byte(file)
    with pytest.raises(UserError, match="short"):
        take(made_up, range(3))
    lenient = dataclasses.replace(made_up, damaged_rows=len(short))
    with caplog.at_level(logging.WARNING):
        got = batches.TrainRows(lenient)
        for row in range(24):
            expected, read = sound[row // 8]["tokens"][0, row % 8], got[row]
            np.testing.assert_array_equal(read["tokens"], 0 if row in short else expected)
            assert (read["targets"] == batches.IGNORE).all() == (row in short)
    assert got.left_out == len(short)
    assert f"({len(short)} of {len(short)} that may be): data.store: " in caplog.text
    following = next(row for row in range(24, 99) if rows.locate(row)[0] == "short")
    with pytest.raises(UserError, match="short"):
        got[following]
