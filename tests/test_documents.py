"""The corpus: sources, splits and lines, and the seqio mixture over them."""

import dataclasses
import importlib
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.stores import BOS, EOS, all_tokens, write_jsonl
from llama_jax.config import LLAMA_MIXTURE, DataConfig, UserError
from llama_jax.data import documents, store, tasks, tokenizer
from llama_jax.data.cache import cache

# ---- Corpus

GOOD = b'{"text": "good"}\n'

BAD_LINES = {
    "broken JSON": (b'{"text": "bad\n', "Invalid control character at: column 14"),
    "a bare NUL": (b'{"text": "\0"}\n', "Invalid control character at: column 11"),
    "no end of brackets": (b"[" * 100_000 + b"\n", "maximum recursion depth exceeded"),
    "no text": (b'{"content": "bad"}\n', 'has no "text"'),
    "text of another type": (b'{"text": 3}\n', '"text" is of type int'),
    "no object": (b'"text"\n', "the line is a str"),
    "not UTF-8": (b'{"text": "\xff\xfe"}\n', "can't decode byte 0xff"),
    "half a surrogate pair": (b'{"text": "\\ud83e"}\n', "surrogates not allowed"),
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
def test_bad_line_is_an_error_with_file_and_line(tiny_data, tmp_path, capfd, bad):
    line, reason = BAD_LINES[bad]
    data = little_corpus(tiny_data, tmp_path, GOOD * 2 + line + GOOD)
    with pytest.raises(UserError, match=r"corpus/essays/train.jsonl:3: expected") as error:
        cache(data, num_workers=1)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "store/essays/train.json").exists()
    printed = capfd.readouterr().err  # by TensorFlow, of errors in its pipeline
    assert "Traceback" not in printed and "UserError" not in printed


@pytest.mark.parametrize("ending", ["gz", "xz"])
@pytest.mark.parametrize("kept_bytes", [-20, 0])
def test_truncated_file_is_an_error(tiny_data, tmp_path, ending, kept_bytes):
    data = little_corpus(tiny_data, tmp_path, GOOD)
    path = tmp_path / f"corpus/essays/train-1.jsonl.{ending}"
    write_jsonl(path, ["good"] * 1000)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(UserError, match=rf"essays/train-1.jsonl.{ending}: cannot be read after"):
        cache(data, num_workers=1)


NO_FILES = {
    "a directory": (Path.mkdir, "is no regular file"),
    "a pipe": (os.mkfifo, "is no regular file"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "is no regular file"),
    "an unreadable file": (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_cannot_be_read_as_a_file_is_an_error_that_names_it(tiny_data, tmp_path, kind):
    make, reason = NO_FILES[kind]
    data = little_corpus(tiny_data, tmp_path, GOOD)
    make(tmp_path / "corpus/essays/train-1.jsonl")
    with pytest.raises(UserError, match=rf"essays/train-1.jsonl: {reason}"):
        cache(data, num_workers=1)


def test_a_file_in_a_compression_that_is_not_read_is_not_left_out_silently(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, GOOD)
    (tmp_path / "corpus/essays/train-1.jsonl.lz4").write_bytes(b'\4"M\x18')
    with pytest.raises(UserError, match=r"essays/train-1.jsonl.lz4: its ending .* with .gz, .xz"):
        cache(data, num_workers=1)


def test_blank_lines_and_documents_are_left_out_and_counted(tiny_data, tmp_path, capsys):
    blank = b'\n \r\n{"text": ""}\n' + GOOD + b'{"text": " \\n"}\n'
    data = little_corpus(tiny_data, tmp_path, blank)
    (tmp_path / "corpus/essays/train-1.jsonl").write_bytes(b"")
    for _ in range(2):  # the second time from what is there
        cache(data, num_workers=1)
    tokens = [BOS, *tokenizer.load(data.tokenizer).encode("good"), EOS]
    assert all_tokens(data, "essays", "train").tolist() == tokens
    line = next(s for s in capsys.readouterr().out.splitlines() if "essays/train-00001" in s)
    assert "1 documents" in line and "4 blank left out" in line


def test_a_split_without_text_is_an_error(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, b"")
    with pytest.raises(UserError, match=r"corpus/essays has no text in its train files"):
        cache(data, num_workers=1)
    assert not store.exists(data)


def test_a_nul_in_a_text_is_kept(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, b'{"text": "a\\u0000b"}\n')
    cache(data, num_workers=1)
    tokens = all_tokens(data, "essays", "train").tolist()
    assert tokenizer.load(data.tokenizer).decode(tokens) == "a\0b"


def test_a_source_without_a_directory_or_train_files_is_an_error(tiny_data, tmp_path):
    unknown = dataclasses.replace(tiny_data, mixture=(("nonesuch", 1.0),))
    with pytest.raises(UserError, match="data.mixture: source 'nonesuch' has no directory"):
        cache(unknown, num_workers=1)
    data = little_corpus(tiny_data, tmp_path, GOOD)
    (tmp_path / "corpus/essays/train.jsonl").unlink()
    with pytest.raises(UserError, match=r"corpus/essays of source 'essays' has no train files"):
        cache(data, num_workers=1)


def test_embedded_corpus_has_every_source_of_the_paper_and_separate_splits():
    data = DataConfig(store="", batch_size=1)
    for source, _ in LLAMA_MIXTURE:
        train, validation = (
            {
                text
                for part in documents.parts(data, source, split)
                for text, _ in documents.read(part)
            }
            for split in store.SPLITS
        )
        assert train and validation
        assert not train & validation


def test_other_seqio_programs_find_the_mixture_of_the_embedded_corpus():
    import seqio

    importlib.import_module("llama_jax.data.mixture")
    mixture = seqio.get_mixture_or_task("llama_mixture")
    assert isinstance(mixture, seqio.Mixture)
    rates = {task.name.rpartition("_")[0]: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == dict(LLAMA_MIXTURE)


def test_a_store_holds_what_the_tasks_give(tmp_path):
    """With the embedded tokenizer, whose words are encoded once each, and not by TensorFlow."""
    odd = [
        "\u2581",
        " \u2581 a\u2581\u2581 b",
        "\u00a0",
        " \v\f ",
        "",
        "a  b\n\n  c \n",
        *tokenizer.MUST_SURVIVE,
    ]
    odd += ["a" + "\u2581 " * 9 + "b", "x" * 100_000, "\u4f60" * 1000, "\0 \0", "\n" * 50, " " * 50]
    (tmp_path / "odd").mkdir()
    write_jsonl(tmp_path / "odd/train.jsonl", odd)
    write_jsonl(tmp_path / "odd/validation.jsonl", odd)
    ours = DataConfig(mixture=(("odd", 1.0),), corpus=str(tmp_path), store="", batch_size=1)
    for data, source in [
        (ours, "odd"),
        *((DataConfig(store="", batch_size=1), s) for s in ("github", "wikipedia")),
    ]:
        (part,) = documents.parts(data, source, "validation")
        found = tasks.tokenize(data, source, documents.read_places(part))
        theirs = tasks.task(data, source).get_dataset(None, "validation", shuffle=False)
        for document, example in zip(found, theirs.as_numpy_iterator(), strict=True):
            np.testing.assert_array_equal(document.tokens, example["targets"])


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
    named = tasks.register(tiny_data, "my_mixture")
    assert seqio.get_mixture_or_task("my_mixture") is named
    assert named.tasks == mixture.tasks
    with pytest.raises(ValueError, match="my_mixture"):
        tasks.register(more, "my_mixture")
    assert tasks.register(more).tasks[0] in mixture.tasks
