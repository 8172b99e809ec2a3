"""Memory that an export and an import take."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from helpers.processes import child, has_torch
from llama_jax.config import ModelConfig
from llama_jax.formats.parameters import num_values

# In a process of its own. What the code and its libraries take is known from a model of one layer.
SEQ_LEN = 256

LAYERS = """
import json, sys
from pathlib import Path
from helpers import exports
from llama_jax.data.tokenizer import EMBEDDED
from llama_jax.formats.convert import import_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

directory = Path(sys.argv[1])
steps = {"import": lambda size: import_model(directory / f"{size}.bin", directory / size, EMBEDDED)}
for to in sys.argv[2:]:
    options = {"shards": 2} if to == "meta" else {}
    steps[to] = lambda size, to=to, options=options: exports.export(
        directory / size, directory / f"{size}-{to}", to, "f32", **options)
figures = {}
for name, step in steps.items():
    step("small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = status("VmRSS")
    step("large")
    figures[name] = status("VmHWM") - before, status("VmHWM")
print(json.dumps(figures))
"""


def write_llama2c(path: Path, cfg: ModelConfig) -> None:
    """Random weights in llama2.c's format."""
    header = (cfg.embed_dim, cfg.mlp_dim, cfg.num_layers, cfg.num_heads, cfg.kv_heads)
    values = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    values /= cfg.embed_dim**0.5
    left = num_values(cfg) + SEQ_LEN * cfg.head_dim  # with its tables of sines
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", *header, cfg.vocab_size, SEQ_LEN))
        while left:
            values[:left].tofile(file)
            left -= len(values[:left])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # or glibc keeps what each thread has freed
    one = ModelConfig(
        num_layers=1, embed_dim=512, num_heads=8, mlp_dim_override=1408, vocab_size=2048,
        tie_embeddings=True,
    )  # fmt: skip
    many = dataclasses.replace(one, num_layers=24)
    write_llama2c(tmp_path / "small.bin", one)
    write_llama2c(tmp_path / "large.bin", many)
    done = child(LAYERS, tmp_path, "hf", "gguf", *["meta"] * has_torch())
    assert done.returncode == 0, done.stderr
    layer_and_embedding = 4 * num_values(one)
    for name, (grown, peak) in json.loads(done.stdout).items():
        print(f"{name}: {grown / 1e6:.0f} MB more than before, {peak / 1e6:.0f} MB in all")
        assert grown < layer_and_embedding + 80e6 < 4 * num_values(many) / 3, name
        assert peak < layer_and_embedding + 1.5e9, name


# In a process of its own. What the code and its libraries take is known from a small vocabulary.
EMBEDDING = """
import struct, sys
from pathlib import Path
from llama_jax.formats.convert import import_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

for vocab_size in (2048, 160_000):
    file = Path(sys.argv[1]) / f"{vocab_size}.bin"
    file.write_bytes(struct.pack("<7i", 512, 64, 1, 8, 8, -vocab_size, 16))
    with open(file, "r+b") as opened:
        values = 2 * vocab_size * 512 + 4 * 512**2 + 3 * 64 * 512 + 3 * 512 + 16 * 64
        opened.truncate(28 + 4 * values)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = status("VmRSS")
    import_model(file, file.with_suffix(""), None)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_an_import_holds_one_copy_of_a_large_embedding(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # or glibc keeps what each thread has freed
    done = child(EMBEDDING, tmp_path)
    assert done.returncode == 0, done.stderr
    embedding = 4 * 160_000 * 512
    assert int(done.stdout) < 1.9 * embedding
