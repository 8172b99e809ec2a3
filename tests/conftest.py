import os

from helpers.processes import XLA_FLAGS

os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # A worker and its children have cores of their own: XLA's thread pools, which take all that
    # they see, would wait for each other.
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    share = cores[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, share or cores)

import contextlib
import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import absl.flags
import jax
import pytest
from etils import epath

import llama_jax.cli
from helpers import exports, plans, stores
from helpers.paths import SHARED
from helpers.runs import EXPERIMENT, NUM_STEPS
from helpers.sweeps import SWEEP
from llama_jax.config import DataConfig, Experiment, MeshConfig
from llama_jax.data import documents, tokenizer_training
from llama_jax.data.cache import cache
from llama_jax.formats import convert
from llama_jax.loading import load
from llama_jax.sharding import make_mesh
from llama_jax.train import train

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # programs run once: compile them fast
absl.flags.FLAGS(["tests"])

# The files that take longest come first: two workers then end at about the same time.
LONGEST = ("test_pages", "test_golden_plans", "test_sweeps", "test_train", "test_clients")
LONGEST_HERE = ("test_step", "test_approaches")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [*LONGEST, "processes", *LONGEST_HERE]

    def rank(item: pytest.Item) -> int:
        parts = (item.path.stem, item.path.parent.name)
        return next((i for i, name in enumerate(names) if name in parts), len(names))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def cli() -> Callable[..., SimpleNamespace]:
    """Run a llama-jax command line in this process: its returncode, stdout and stderr."""

    def run(*args) -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            patch.setattr(sys, "argv", ["llama-jax", *map(str, args)])
            patch.setenv("PYTHONSAFEPATH", "")  # main() sets it; afterwards it is as before
            llama_jax.cli.main()
        code = end.value.code
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


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
        stores.write_jsonl(corpus / source / "train-0.jsonl", train[0::2])
        stores.write_jsonl(corpus / source / "train-1.jsonl.gz", train[1::2])
        validation = _head(source, "validation", TINY_VALIDATION_BYTES)
        stores.write_jsonl(corpus / source / "validation.jsonl.xz", validation)
    return corpus


@pytest.fixture(scope="session")
def tiny_data(tiny_corpus, tmp_path_factory) -> DataConfig:
    """A store of tiny_corpus, in tokens of a vocabulary of 512."""
    directory = tmp_path_factory.mktemp("tiny")
    data = DataConfig(
        mixture=TINY_MIXTURE,
        corpus=str(tiny_corpus),
        tokenizer=str(directory / "tokenizer.model"),
        store=str(directory / "store"),
        seq_len=64,
        batch_size=8,
    )
    model = tokenizer_training.train(data, vocab_size=512, max_bytes=300_000)
    (directory / "tokenizer.model").write_bytes(model)
    cache(data, num_workers=1)
    return data


def _head(source: str, split: str, num_bytes: int) -> list[str]:
    """Documents of the embedded corpus, each cut to 5000 characters, of num_bytes at least."""
    (part,) = documents.parts(DataConfig(store="", batch_size=1), source, split)
    texts = [text[:5000] for text, _ in itertools.islice(documents.read(part), num_bytes // 100)]
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    return texts[: 1 + next(i for i, size in enumerate(sizes) if size >= num_bytes)]


@pytest.fixture
def made_up(tmp_path) -> DataConfig:
    """A store of made-up tokens."""
    data = DataConfig(
        mixture=(("long", 0.5), ("short", 0.3), ("other", 0.2)),
        store=str(tmp_path / "store"),
        seq_len=16,
        batch_size=8,
    )
    stores.write(data)
    return data


# Runs


@pytest.fixture(scope="session")
def experiment_file(tiny_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT.format(data=tiny_data, num_steps=NUM_STEPS))
    return path


@pytest.fixture(scope="session")
def experiment(experiment_file) -> Experiment:
    """The same, on the eight devices of this process, which nobody names."""
    return load(str(experiment_file))


@pytest.fixture(scope="session")
def trained(experiment, tmp_path_factory) -> Path:
    """A workdir of `experiment`, trained to its end in this process; to be copied, not changed."""
    workdir = tmp_path_factory.mktemp("trained") / "trained"
    train(experiment, epath.Path(workdir), accept_changes=False)
    return workdir


@pytest.fixture
def make_file(tiny_data, tmp_path) -> Callable[..., Path]:
    """A sweep file of (embed_dim, num_steps, vocab_size); the tokenizer has 512 pieces."""

    def make(*runs: tuple[int, int, int]) -> Path:
        path = tmp_path / "tiny.py"
        path.write_text(SWEEP.format(data=tiny_data, runs=runs))
        return path

    return make


@pytest.fixture(scope="module")
def plan_cache(tmp_path_factory):
    """A cache of plans for all tests of a file, and not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def plan(cli) -> Callable[..., SimpleNamespace]:
    """Plan the tiny model of helpers/plans.py by the command."""

    def run(*args: str, overrides: tuple[str, ...] = ()) -> SimpleNamespace:
        return cli("plan", plans.EXPERIMENT, *plans.sets(*overrides), *args)

    return run


# Checkpoints to export


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Workdirs mha and gqa."""
    directory = tmp_path_factory.mktemp("runs")
    exports.save_random(exports.MHA, directory / "mha")
    exports.save_random(exports.GQA, directory / "gqa")
    return directory


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    """Real trained weights, as a workdir."""
    if not (SHARED / "weights/stories260K.bin").exists():
        pytest.skip("the weights of stories260K are not here (../shared/data/weights)")
    workdir = tmp_path_factory.mktemp("stories") / "stories"
    files = SHARED / "weights"
    convert.import_model(files / "stories260K.bin", workdir, files / "tok512.model")
    return workdir


@pytest.fixture(scope="session")
def good(runs, tmp_path_factory) -> Path:
    """Exports of one model, for tests to import, or to damage copies of."""
    directory = tmp_path_factory.mktemp("good")
    exports.export(runs / "gqa", directory / "hf", "hf", shard_bytes=300_000, verify=False)
    exports.export(runs / "gqa", directory / "gguf", "gguf", verify=False)
    exports.export(runs / "gqa", directory / "q4_0", "gguf", "q4_0", verify=False)
    return directory
