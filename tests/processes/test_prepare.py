"""Tokenizing in several processes."""

import dataclasses

from helpers.processes import llama_jax
from helpers.stores import files_of
from llama_jax.data import store
from llama_jax.data.prepare import prepare


def test_store_is_the_same_from_two_workers(tiny_data, tmp_path):
    prepare(dataclasses.replace(tiny_data, store=str(tmp_path)), num_workers=2)
    assert files_of(tmp_path) == files_of(tiny_data.store)


def test_prepare_with_workers_ends(experiment_file, tiny_data, tmp_path):
    done = llama_jax(
        "prepare", experiment_file, "--workers", 2, "--set", f"data.store={tmp_path / 'store'}"
    )
    assert done.returncode == 0, done.stderr
    other = dataclasses.replace(tiny_data, store=str(tmp_path / "store"))
    assert store.digest(other) == store.digest(tiny_data)
    assert "normalizer.cc" not in done.stderr
