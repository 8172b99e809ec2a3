import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import gzip
import itertools
import json
import lzma
from pathlib import Path

import absl.flags
import exports
import jax
import pytest

from llama_jax.config import DataConfig, MeshConfig
from llama_jax.data import documents, tokenizer
from llama_jax.data.prepare import prepare
from llama_jax.formats import convert
from llama_jax.sharding import make_mesh

jax.config.update("jax_numpy_rank_promotion", "raise")
absl.flags.FLAGS(["tests"])


@pytest.fixture
def one_device():
    """The code under test runs on a mesh of one device."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) as mesh:
        yield mesh


# Data

TINY_MIXTURE = (("github", 0.67), ("books", 0.3), ("stackexchange", 0.03))
TINY_TRAIN_BYTES = 100_000  # of each source
TINY_VALIDATION_BYTES = 15_000


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """The head of three sources of the embedded corpus, in the three formats a corpus may have."""
    corpus = tmp_path_factory.mktemp("corpus")
    for source, _ in TINY_MIXTURE:
        (corpus / source).mkdir()
        train = _head(source, "train", TINY_TRAIN_BYTES)
        write_jsonl(corpus / source / "train-0.jsonl", train[0::2])
        write_jsonl(corpus / source / "train-1.jsonl.gz", train[1::2])
        validation = _head(source, "validation", TINY_VALIDATION_BYTES)
        write_jsonl(corpus / source / "validation.jsonl.xz", validation)
    return corpus


@pytest.fixture(scope="session")
def tiny_data(tiny_corpus, tmp_path_factory) -> DataConfig:
    """A prepared store of tiny_corpus, in tokens of a vocabulary of 512."""
    directory = tmp_path_factory.mktemp("tiny")
    data = DataConfig(
        mixture=TINY_MIXTURE,
        corpus=str(tiny_corpus),
        tokenizer=str(directory / "tokenizer.model"),
        store=str(directory / "store"),
        seq_len=64,
        batch_size=8,
    )
    tokenizer.train(data, vocab_size=512, out=directory / "tokenizer.model", max_bytes=300_000)
    prepare(data, num_workers=1)
    return data


def write_jsonl(path: Path, texts: list[str]) -> None:
    opener = {".jsonl": open, ".gz": gzip.open, ".xz": lzma.open}[path.suffix]
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _head(source: str, split: str, num_bytes: int) -> list[str]:
    """Documents of the embedded corpus, each cut to 5000 characters, of num_bytes at least."""
    (path,) = documents.files(DataConfig(store="", batch_size=1), source, split)
    texts = [text[:5000] for text in itertools.islice(documents.read(path), num_bytes // 100)]
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    return texts[: 1 + next(i for i, size in enumerate(sizes) if size >= num_bytes)]


# Checkpoints to export


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Workdirs mha and gqa."""
    directory = tmp_path_factory.mktemp("runs")
    exports.save_random(exports.MHA, directory / "mha")
    exports.save_random(exports.GQA, directory / "gqa")
    return directory


@pytest.fixture(scope="session")
def trained(tiny_data, tmp_path_factory) -> Path:
    """A workdir that training wrote."""
    workdir = tmp_path_factory.mktemp("trained") / "trained"
    exports.save_trained(tiny_data, workdir)
    return workdir


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    """Real trained weights, as a workdir."""
    if not (exports.SHARED / "weights/stories260K.bin").exists():
        pytest.skip("the weights of stories260K are not here (../shared/data/weights)")
    workdir = tmp_path_factory.mktemp("stories") / "stories"
    files = exports.SHARED / "weights"
    convert.import_model(files / "stories260K.bin", workdir, files / "tok512.model")
    return workdir
