"""Tokenizing in several processes."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from helpers.processes import child, environment, llama_jax
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


def test_two_machines_make_the_store_of_one(experiment_file, tiny_data, tmp_path):
    """The first to end says what is missing; both at once, and one whose shards another made."""
    where = ("--set", f"data.store={tmp_path / 'store'}")
    first = llama_jax("cache", experiment_file, "--shard", "1/2", *where)
    assert first.returncode == 0, first.stderr
    assert "5 of 9 shards are not there yet: github/train-00000, " in first.stdout
    assert not list((tmp_path / "store").glob("*/train.json"))
    commands = [
        [sys.executable, "-m", "llama_jax", "cache", experiment_file, "--shard", f"{i}/2", *where]
        for i in range(2)
    ]
    both = [subprocess.Popen(command, env=environment()) for command in commands]
    assert [process.wait() for process in both] == [0, 0]
    assert files_of(tmp_path / "store") == files_of(tiny_data.store)


@pytest.mark.parametrize("shard", ["2/2", "0/0", "1", "-1/2", "a/b"])
def test_machines_count_from_zero(cli, experiment_file, shard):
    done = cli("cache", experiment_file, f"--shard={shard}")
    assert done.returncode == 2 and "I from 0 to N - 1" in done.stderr


def test_a_killed_one_goes_on_to_the_same_bytes(experiment_file, tiny_data, tmp_path):
    store_of = tmp_path / "store"
    command = [sys.executable, "-m", "llama_jax", "cache", experiment_file]
    command += ["--set", f"data.store={store_of}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(store_of.glob("*/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (store_of / "stackexchange/train.json").exists()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert files_of(store_of) == files_of(tiny_data.store)


# A piece is 64 kB here, and the shard 100 MB. What is kept of a document is 3 numbers.
SPILLING = """
import json, re, sys
from pathlib import Path
import numpy as np
from llama_jax.config import DataConfig
from llama_jax.data import cache, ledger, store, tasks
from llama_jax.data.store import read_split
from llama_jax.place import place

def documents(data, source, texts):
    rows = np.arange(500, dtype=np.int32) % 300 + 3
    for i in range(int(sys.argv[2]) if "train" in next(texts)[1] else 2):
        yield tasks.Tokenized(rows, f"train.jsonl:{i + 1}", f"id-{i}")

def peak():  # ru_maxrss would begin with that of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

store.FILE_TOKENS = 2**15
tasks.tokenize = documents
data = DataConfig(**json.loads(sys.argv[1]), mixture=(("books", 1.0),))
before = peak()
cache.cache(data, 1)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_shard(tiny_data, tmp_path):
    (tmp_path / "corpus/books").mkdir(parents=True)
    for split in store.SPLITS:
        (tmp_path / f"corpus/books/{split}.jsonl").write_text('{"text": "x"}\n')
    fields = {"corpus": str(tmp_path / "corpus"), "tokenizer": tiny_data.tokenizer}
    fields |= {"store": str(tmp_path / "store"), "batch_size": 1}
    done = child(SPILLING, json.dumps(fields), 100_000)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[-1]) * 1024
    data = dataclasses.replace(tiny_data, mixture=(("books", 1.0),), store=fields["store"])
    assert store.read_split(data, "books", "train").num_tokens == 50_000_000  # 100 MB
    assert grown < 60e6, grown
