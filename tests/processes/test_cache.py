"""Tokenizing in several processes."""

import dataclasses

import pytest

from helpers.processes import llama_jax
from helpers.stores import files_of
from llama_jax.data import store
from llama_jax.data.cache import cache


def test_store_is_the_same_from_two_workers(tiny_data, tmp_path):
    cache(dataclasses.replace(tiny_data, store=str(tmp_path)), num_workers=2)
    assert files_of(tmp_path) == files_of(tiny_data.store)


def test_prepare_with_workers_ends(experiment_file, tiny_data, tmp_path):
    done = llama_jax(
        "cache", experiment_file, "--workers", 2, "--set", f"data.store={tmp_path / 'store'}"
    )
    assert done.returncode == 0, done.stderr
    other = dataclasses.replace(tiny_data, store=str(tmp_path / "store"))
    assert store.digest(other) == store.digest(tiny_data)
    assert "normalizer.cc" not in done.stderr


@pytest.mark.parametrize("verb", [("cache", "--workers", 2), ("train",)])
def test_a_bad_line_ends_it_with_one_line(experiment_file, tmp_path, verb):
    (tmp_path / "corpus/books").mkdir(parents=True)
    (tmp_path / "corpus/books/train.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    (tmp_path / "corpus/books/validation.jsonl").write_text('{"text": "good"}\n')
    done = llama_jax(
        *(*verb, experiment_file, "--set", f"data.corpus={tmp_path / 'corpus'}"),
        *("--set", f"data.store={tmp_path / 'store'}", "--set", "data.mixture=(('books', 1.0),)"),
    )
    assert done.returncode == 2
    lines = [s for s in done.stderr.splitlines() if not s.startswith("writing the token store")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"llama-jax cache: {tmp_path}/corpus/books/train.jsonl:2: ")
