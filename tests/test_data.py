"""The ledger: which documents a batch holds, and at which steps a document is seen."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.damage import flip_a_byte
from llama_jax.config import UserError
from llama_jax.data import batches, documents, tokenizer
from llama_jax.data.cache import cache
from llama_jax.data.ledger import Ledger
from llama_jax.data.schedule import Entry, Schedule


@pytest.fixture(scope="module")
def ledger(tiny_data) -> Ledger:
    return Ledger(tiny_data)


def corpus_tokens(data) -> dict[tuple[str, str], list[int]]:
    """The tokens of each document of the training files, by source and place: sentencepiece's."""
    vocabulary = tokenizer.load(data.tokenizer)
    return {
        (source, place): [vocabulary.bos_id, *vocabulary.encode(d.text), vocabulary.eos_ids[0]]
        for source, _ in data.mixture
        for part in documents.parts(data, source, "train")
        for d, place in documents.read_places(part)
    }


def test_the_documents_of_a_batch_are_what_it_trains_on(tiny_data, ledger):
    """Read from the corpus, by file, row and position, against the rows that training reads."""
    texts, rows = corpus_tokens(tiny_data), batches.TrainRows(tiny_data)
    vocabulary = tokenizer.load(tiny_data.tokenizer)
    for number in np.random.default_rng(0).integers(10**6, size=20).tolist():
        shown = list(ledger.batch(number))
        for r in range(tiny_data.batch_size):
            found = []
            for s in (s for s in shown if s.row == r):
                begin, end = s.start - s.document.start, s.stop - s.document.start
                tokens = texts[s.source, s.document.place][begin:end]
                assert s.text == vocabulary.decode(tokens)
                assert len(texts[s.source, s.document.place]) == s.document.stop - s.document.start
                found += tokens
            assert found == rows[number * tiny_data.batch_size + r]["tokens"].tolist()


def test_a_document_is_found_at_the_steps_that_show_it(tiny_data, ledger):
    """Also where a run left batches out, against a scan of every batch."""
    schedule, num_steps = Schedule((Entry(0, 0), Entry(30, 50), Entry(60, 700))), 150
    expected = {}
    for step in range(num_steps):
        for s in ledger.batch(schedule.batch(step)):
            expected.setdefault((s.source, s.document), set()).add(step)
    for source, of_source in ledger.documents.items():
        every = list(of_source.all())
        for document in every[:: max(1, len(every) // 8)]:
            steps = ledger.steps(source, document, schedule, num_steps)
            assert steps == sorted(expected.get((source, document), ()))
    assert any(len(steps) > 3 for steps in expected.values())


def test_epochs_are_counted(tiny_data, ledger):
    """Against the rows of the batches, one by one."""
    schedule, num_steps = Schedule((Entry(0, 0), Entry(5, 9))), 11
    rows = [ledger.rows.locate(b * 8 + r) for b in (*range(5), *range(9, 15)) for r in range(8)]
    for index, windows in enumerate(ledger.rows.windows):
        seen = sum(source == windows.source for source, _ in rows)
        assert ledger.epochs(index, schedule, num_steps) == seen / len(windows)


def test_ids_and_rows_are_of_the_corpus(tiny_data, tmp_path):
    """Ids of rows' own, blank rows, and rows that are held out, which are counted, too."""
    data = dataclasses.replace(
        tiny_data,
        mixture=(("mine", 1.0),),
        corpus=str(tmp_path),
        store=str(tmp_path / "store"),
        held_out=0.3,
        seq_len=16,
    )
    rows = [{"text": f"text {i} \u00e9", "id": f"id-{i}"} for i in range(60)]
    rows[7]["text"] = " "
    del rows[9]["id"]
    (tmp_path / "mine").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "mine/train.jsonl").write_text(lines)
    cache(data, num_workers=1)
    ledger = Ledger(data)
    found = list(ledger.documents["mine"].all())
    assert 30 < len(found) < 55
    for document in found:
        row = rows[int(document.place.removeprefix("train.jsonl:")) - 1]
        assert document.id == row.get("id", document.place)
        tokens = ledger.documents["mine"].tokens.read(document.start, document.stop)
        assert ledger.vocabulary.decode(tokens.tolist()) == row["text"] != " "
    wanted = found[3]
    text = rows[int(wanted.place.split(":")[1]) - 1]["text"]
    for what in (wanted.id, wanted.place, text):
        assert [d for _, d in ledger.find(what)] == [wanted]


def test_documents_that_were_changed_are_named(tiny_data, tmp_path):
    data = dataclasses.replace(tiny_data, store=str(tmp_path / "store"))
    shutil.copytree(tiny_data.store, data.store)
    flip_a_byte(Path(data.store) / "books/train-00000.documents/c/0")
    with pytest.raises(UserError, match="source books .*books/train-00000.documents"):
        list(Ledger(data).documents["books"].all())
    batches.TrainRows(data)  # which has no use for them
    cache(data, num_workers=1)
    list(Ledger(data).documents["books"].all())


def test_data_prints_batches_steps_and_epochs(cli, trained, experiment_file):
    done = cli("data", experiment_file, "--step", 3, "--show", 10)
    assert done.returncode == 0, done.stderr
    title, *lines = done.stdout.splitlines()
    assert title == "batch 3, of the update after 3 others: step 4 of the log"
    form = r"row \d: \w+ epoch 0 train-[01]\.jsonl(\.gz)?:\d+ tokens \d+\.\.\d+ of \d+: ['\"].*"
    assert all(re.fullmatch(form, line) for line in lines), lines
    assert cli("data", trained, "--step", 3, "--show", 10).stdout == done.stdout

    place = lines[0].split()[5]
    done = cli("data", trained, "--find", place)
    assert done.returncode == 0, done.stderr
    source = lines[0].split()[2]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{source} "))
    assert re.fullmatch(rf"{source} {re.escape(place)}: steps (\d+, )*3(, \d+)* of 12", line)

    done = cli("data", experiment_file, "--stats", "--set", "run.num_steps=100000")
    assert done.returncode == 0, done.stderr
    assert all(source in done.stdout for source in ("github", "books", "stackexchange"))
    assert re.search(r"warning: books is seen [\d.]+ times; the paper's, 2.23", done.stdout)


def test_what_is_not_there_is_said_in_a_line(cli, experiment_file, tmp_path):
    done = cli("data", experiment_file, "--find", "\u2603 nobody wrote this")
    assert done.returncode == 2 and "--find: got" in done.stderr
    done = cli("data", tmp_path, "--step", 1)
    assert done.returncode == 2 and "workdir: " in done.stderr
