"""Workdirs, stores and corpora in a bucket: real processes, against a storage emulator."""

import contextlib
import dataclasses
import io
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.processes import environment, run_telling, start_pod, telling
from helpers.runs import EXPERIMENT, NUM_STEPS
from helpers.storage_emulator import StorageEmulator, refusing
from llama_jax.config import DataConfig
from llama_jax.data import documents
from llama_jax.data.cache import cache
from llama_jax.data.ledger import Ledger
from llama_jax.run import checkpoint
from llama_jax.run.metrics import Writer, read_metrics
from llama_jax.run.workdir import steps

bucket = pytest.importorskip("llama_jax.bucket", reason="gcsfs is not installed")

BUCKET, FORBIDDEN = "llama-runs", "not-ours"
RUN = f"gs://{BUCKET}/run"


@contextlib.contextmanager
def started(*args) -> Iterator[subprocess.Popen[str]]:
    """Start llama-jax, and kill it at the end."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        telling(*args), env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def losses(workdir: epath.Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(workdir) if "loss" in r}


@pytest.fixture(scope="module")
def storage() -> Iterator[StorageEmulator]:
    with StorageEmulator(BUCKET, FORBIDDEN) as storage, pytest.MonkeyPatch.context() as patch:
        storage.forbidden.add(FORBIDDEN)
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage


@pytest.fixture(scope="module")
def data(storage, tiny_data) -> DataConfig:
    """tiny_data, of which corpus, tokenizer and store lie in the bucket."""
    storage.copy_in(BUCKET, "corpus", Path(tiny_data.corpus))
    storage.put(BUCKET, "tokenizer.model", Path(tiny_data.tokenizer).read_bytes())
    return dataclasses.replace(
        tiny_data,
        corpus=f"gs://{BUCKET}/corpus",
        tokenizer=f"gs://{BUCKET}/tokenizer.model",
        store=f"gs://{BUCKET}/store",
    )


@pytest.fixture(scope="module")
def experiment(data, cli, tmp_path_factory) -> Path:
    """An experiment file, whose store is there."""
    path = tmp_path_factory.mktemp("bucket") / "tiny.py"
    path.write_text(EXPERIMENT.format(data=data, num_steps=NUM_STEPS))
    done = cli("cache", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def straight(experiment, tmp_path_factory) -> epath.Path:
    """The workdir, on a disk, of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = run_telling("train", experiment, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return epath.Path(workdir)


@pytest.fixture(scope="module")
def killed(storage, experiment) -> epath.Path:
    """A run in the bucket, killed in the middle of its second save."""
    with (
        holding(storage, "run/checkpoints/6/commit_success"),
        started("train", experiment, "--workdir", RUN) as process,
    ):
        wait_until(storage.reached.is_set, process)
    assert storage.names(BUCKET, "run/checkpoints/6/")
    return epath.Path(RUN)


@contextlib.contextmanager
def holding(storage: StorageEmulator, name: str) -> Iterator[None]:
    storage.reached.clear()
    storage.held = name
    try:
        yield
    finally:
        storage.held = None


@pytest.fixture(scope="module")
def resumed(killed, experiment) -> tuple[epath.Path, str]:
    """The same run, which was started again, and what that printed."""
    done = run_telling("train", experiment, "--workdir", RUN, "--profile", "2")
    assert done.returncode == 0, done.stderr
    return killed, done.stdout + done.stderr


def test_a_save_that_was_cut_short_is_no_checkpoint(killed, cli):
    assert steps(killed) == [3]
    done = cli("evaluate", RUN)
    assert done.returncode == 0 and f"{RUN}@3: held-out loss" in done.stdout, done.stderr


def test_a_run_in_a_bucket_that_is_killed_goes_on_exactly(straight, resumed):
    workdir, printed = resumed
    assert "checkpoints/6 was not finished; ignored" in printed
    assert "steps 3 to 12" in printed and "loaded TensorFlow: False" in printed
    assert losses(workdir) == losses(straight)
    assert [r["step"] for r in read_metrics(workdir) if "loss" not in r] == [6, 12]
    assert steps(workdir) == steps(straight) == [6, 9, 12]
    last = [checkpoint.read_meta(path, NUM_STEPS).fingerprints for path in (workdir, straight)]
    assert last[0] == last[1]


def test_what_a_run_in_a_bucket_leaves_behind(resumed, storage, tmp_path):
    assert not Path("gs:").exists()
    names = set(storage.names(BUCKET, "run/"))
    assert {"run/config.json", "run/tokenizer.model", "run/loss.png"} < names
    assert not [name for name in names if ".lease" in name or name.endswith(".tmp")]
    assert any(name.endswith(".xplane.pb") for name in names if name.startswith("run/profile/"))
    values = {}
    for name in sorted(names):
        if name.startswith("run/tensorboard/"):
            file = tmp_path / name.rpartition("/")[2]
            file.write_bytes(storage.buckets[BUCKET][name].content)
            values |= events(file)
    for step, loss in losses(resumed[0]).items():
        assert values[step, "loss"] == pytest.approx(loss)


def events(file: Path) -> dict[tuple[int, str], float]:
    from tensorflow.compat.v1.train import summary_iterator  # pyright: ignore[reportMissingImports]

    return {
        (event.step, value.tag): value.simple_value
        for event in summary_iterator(str(file))
        for value in event.summary.value
    }


def test_the_verbs_read_a_run_in_a_bucket(resumed, cli, tmp_path, storage):
    done = cli("sample", f"{RUN}@9", "--prompt", "a", "--max-tokens", "3")
    assert done.returncode == 0 and done.stdout.startswith("a"), done.stderr
    done = cli("export", RUN, "--to", "hf", "--out", tmp_path / "hf")
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    done = cli("plot", RUN, RUN, "--out", f"gs://{BUCKET}/curves.png")
    assert done.returncode == 0, done.stderr
    assert storage.buckets[BUCKET]["curves.png"].content.startswith(b"\x89PNG")


def test_a_damaged_checkpoint_in_a_bucket_is_moved_aside(resumed, experiment, storage, cli):
    for name in storage.names(BUCKET, "run/"):
        storage.put(BUCKET, f"damaged-{name}", storage.buckets[BUCKET][name].content)
    workdir, checkpoints = f"gs://{BUCKET}/damaged-run", "damaged-run/checkpoints"
    storage.put(BUCKET, f"{checkpoints}/12/meta/metadata", b"{")
    done = cli("train", experiment, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert steps(epath.Path(workdir)) == [6, 9, 12]
    assert list(losses(epath.Path(workdir))) == list(range(1, NUM_STEPS + 1))
    assert storage.buckets[BUCKET]["damaged-run/damaged/12.0/meta/metadata"].content == b"{"
    why = storage.buckets[BUCKET]["damaged-run/damaged/12.0.txt"].content
    assert b"checkpoints/12 is damaged" in why


def test_a_second_process_is_refused_and_a_failing_bucket_ends_the_first(experiment, storage):
    workdir = f"gs://{BUCKET}/both"
    endless = ("train", experiment, "--workdir", workdir, "--set", "run.num_steps=100000")
    with started(*endless) as first:
        wait_until(lambda: 3 in steps(epath.Path(workdir)), first)
        second = run_telling("train", experiment, "--workdir", workdir)
        assert second.returncode == 2 and f"in use by process {first.pid}" in second.stderr
        newest = steps(epath.Path(workdir))[-1]
        with refusing(storage, BUCKET):
            printed, _ = first.communicate(timeout=240)
    assert first.returncode == 1 and "Traceback" not in printed, printed
    (last,) = [line for line in printed.splitlines() if line.startswith("llama-jax train:")]
    assert "does not have access" in last and workdir in last
    assert int(re.findall(r"newest whole checkpoint: (\d+)", last)[0]) >= newest
    found = list(losses(epath.Path(workdir)))
    assert found == list(range(1, len(found) + 1)) and len(found) >= newest


def test_a_bucket_that_refuses_for_a_while_costs_nothing(experiment, storage):
    workdir = f"gs://{BUCKET}/a_while"
    sets = ("run.num_steps=300", "upkeep.eval_every=300", "upkeep.checkpoint_every=100")
    arguments = [argument for text in sets for argument in ("--set", text)]
    with started("train", experiment, "--workdir", workdir, *arguments) as run:
        wait_until(lambda: 100 in steps(epath.Path(workdir)), run)
        assert run.stdout is not None
        with refusing(storage, BUCKET):
            said = [next(line for line in run.stdout if "could not be saved" in line)]
        said += run.stdout
        assert run.wait() == 0, said
    assert "step 200: could not be saved" in said[0] and "again every 10 steps" in said[0]
    assert 300 in steps(epath.Path(workdir))
    assert list(losses(epath.Path(workdir))) == list(range(1, 301))


def test_a_pod_trains_into_a_bucket(straight, experiment):
    workdir = f"gs://{BUCKET}/pod"
    pod = start_pod("train", experiment, "--workdir", workdir)
    printed = [process.communicate(timeout=240)[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    found = losses(epath.Path(workdir))
    np.testing.assert_allclose(list(found.values()), list(losses(straight).values()), rtol=1e-5)
    assert steps(epath.Path(workdir)) == [6, 9, 12]


def test_two_processes_share_a_sweep_in_a_bucket(data, experiment, make_file, storage):
    file = make_file((16, 8, 512), (16, 12, 512))
    args = ("sweep", file, "--workdir", f"gs://{BUCKET}/sweep", "--set", f"data.store={data.store}")
    with started(*args) as first, started(*args) as second:
        both = (first, second)
        printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    rows = storage.buckets[BUCKET]["sweep/results.csv"].content.decode().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["16-8", "16-8", "16-12", "16-12"]
    # Each was begun once, or there would be two of its first step.
    starts = [n for n in storage.names(BUCKET, "sweep/") if n.endswith(".000000") and "events" in n]
    assert len(starts) == 2
    owners = re.findall(r": running .*_(\d+)$", "".join(printed), re.MULTILINE)
    assert set(owners) == {str(process.pid) for process in both}


# Buckets that cannot be used


def commands(experiment: Path, address: str) -> list[tuple[object, ...]]:
    """Return commands that name an address, one of each kind."""
    return [
        ("train", experiment, "--workdir", address),
        ("train", experiment, "--workdir", "x", "--set", f"data.store={address}"),
        *(
            ("cache", experiment, "--set", f"data.{field}={address}")
            for field in ("store", "corpus", "tokenizer")
        ),
        ("evaluate", address),
        ("sample", address, "--prompt", "a"),
        ("export", address, "--to", "hf", "--out", "x"),
        ("plot", address),
        ("sweep", "sweeps/cpu_isoflop", "--workdir", address),
        ("sweep", "sweeps/cpu_isoflop", "--workdir", address, "--dry-run"),
    ]


@pytest.mark.parametrize(
    "address, message",
    [
        ("gs://no-such-bucket/run", "there is no bucket gs://no-such-bucket"),
        (f"gs://{FORBIDDEN}/run", f"gs://{FORBIDDEN} cannot be read: Forbidden: me@x"),
        ("gs:/llama-runs/run", "expected a local path"),
        ("gs://", "expected a local path"),
        ("s3://llama-runs/run", "expected a local path"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(
    experiment, cli, address, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for args in commands(experiment, address):
        done = cli(*args)
        assert done.returncode == 2 and message in done.stderr, (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, (args, done.stderr)
    assert not (tmp_path / "gs:").exists()


def test_what_can_only_be_local_is_refused(cli, resumed):
    done = cli("export", RUN, "--to", "hf", "--out", f"gs://{BUCKET}/hf")
    assert done.returncode == 2
    assert f"argument --out: got 'gs://{BUCKET}/hf', expected a local path" in done.stderr


def test_a_bucket_that_does_not_answer_is_named(storage, cli, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(bucket, "ANSWER_SECONDS", 0.5)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        done = cli("plot", "gs://silent-bucket/run")
    assert done.returncode == 2
    assert "gs://silent-bucket gave no answer within 0.5 s" in done.stderr


def test_a_bucket_from_which_no_checkpoint_could_be_deleted_is_refused(experiment, cli, storage):
    storage.nameless.add(BUCKET)
    done = cli("train", experiment, "--workdir", f"gs://{BUCKET}/other")
    storage.nameless.discard(BUCKET)
    assert done.returncode == 2 and "does not have access" in done.stderr


# Corpora as they are published


def test_published_files_in_a_bucket_are_read_and_cached_there(storage):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    table = pa.table({"content": [f"row {i}" for i in range(300)]})
    parquet, stream = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet, row_group_size=100)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    lines = "".join(f'{{"content": "row {i}"}}\n' for i in range(300)).encode()
    files = {
        "stack/data/c/0.parquet": parquet.getvalue(),
        "dump/a/b/0.jsonl.zst": pa.Codec("zstd").compress(lines, asbytes=True),
        "saved/data-00000-of-00001.arrow": stream.getvalue(),
        "saved/state.json": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}',
    }
    for name, content in files.items():
        storage.put(BUCKET, f"published/{name}", content)
    sources = (
        ("parquet", "stack/data/*/*.parquet", "content"),
        ("zstd", f"gs://{BUCKET}/published/dump/**/*.jsonl.zst", "content"),
        ("arrow", "saved", "content"),
    )
    data = DataConfig(
        corpus=f"gs://{BUCKET}/published", sources=sources, held_out=0.1, store="", batch_size=1
    )
    for source, _, _ in sources:
        splits = [
            {d.text for part in documents.parts(data, source, split) for d in documents.read(part)}
            for split in ("train", "validation")
        ]
        assert all(splits) and splits[0] | splits[1] == {*table["content"].to_pylist()}
    data = dataclasses.replace(
        data, mixture=(("zstd", 1.0),), store=f"gs://{BUCKET}/published/store", seq_len=16
    )
    cache(data, num_workers=1)
    (train,) = documents.parts(data, "zstd", "train")
    text, name = next(documents.read(train))
    ledger = Ledger(data)
    ((source, document),) = ledger.find(name)
    assert source == "zstd"
    tokens = ledger.documents["zstd"].tokens.read(document.start, document.stop)
    assert ledger.vocabulary.decode(tokens.tolist()) == text


# What grows


def test_metrics_go_to_a_bucket_in_proportion_to_their_length(storage, monkeypatch):
    monkeypatch.setattr(bucket, "PIECE_BYTES", 500)
    sent = []
    for num_steps in (30, 60, 120):
        workdir = epath.Path(f"gs://{BUCKET}/grown-{num_steps}")
        writer = Writer(workdir, 0, None)
        for step in range(1, num_steps + 1):
            writer.write(step, {"tokens": step, "loss": 1.5, "tokens_per_second": 1.0})
            writer.flush()
        writer.close()
        assert list(losses(workdir)) == list(range(1, num_steps + 1))
        own = [upload for upload in storage.uploads if f"{workdir.name}/" in upload.name]
        sent.append(sum(upload.size for upload in own))
    assert sent[1] < 2.1 * sent[0] and sent[2] < 2.1 * sent[1]


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
