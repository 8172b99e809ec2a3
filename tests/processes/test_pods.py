"""A pod of two processes reads the batches of one, and neither waits for one that is gone."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.damage import largest_file, truncate
from helpers.processes import XLA_FLAGS, start_pod
from helpers.runs import losses
from helpers.stores import take
from llama_jax.config import BATCH_KEYS
from llama_jax.run.workdir import steps

# ---- A pod of two processes


def test_two_real_processes_give_the_batches_of_one(made_up, tmp_path):
    expected = take(made_up, range(2, 5), micro_batches=2)
    arguments = [sys.executable, "-c", WORKER, json.dumps(dataclasses.asdict(made_up))]
    environment = os.environ | {
        "XLA_FLAGS": f"{XLA_FLAGS} --xla_force_host_platform_device_count=4"
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen([*arguments, str(i), str(tmp_path), port], env=environment)
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    seen = [np.zeros((3, 2, 4, 16), np.int32) for _ in range(4)]
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as parts:
            for name, part in parts.items():
                step, key, *bounds = map(int, name.split())
                a, b, c, d = bounds
                seen[key][step, a:b, c:d] = part
    for step, batch in enumerate(expected):
        for key, name in enumerate(BATCH_KEYS):
            np.testing.assert_array_equal(seen[key][step], batch[name])


def test_who_is_killed_is_named_and_not_waited_for(experiment_file, tmp_path):
    workdir = tmp_path / "run"
    endless = ("--set", "run.num_steps=100000", "--set", "upkeep.eval_every=100000")
    pod = start_pod("train", experiment_file, "--workdir", workdir, *endless)
    while not steps(epath.Path(workdir)):
        assert pod[0].poll() is None
    pod[1].kill()
    printed = pod[0].communicate(timeout=60)[0]
    pod[1].communicate()
    assert pod[0].returncode == 1, printed
    last = printed.strip().splitlines()[-1]
    assert f"process 1 on {socket.gethostname()} is gone: it was killed" in last


def make_reads_hang(store: Path) -> None:
    """Put pipes that nobody writes to in place of its training data, as a file server that does
    not answer."""
    for file in [f for f in store.rglob("*") if f.is_file() and "train" in str(f)]:
        pipe = file.with_name("pipe")
        os.mkfifo(pipe)
        pipe.rename(file)


def test_a_host_whose_reads_hang_is_named_with_all_stacks(experiment_file, tiny_data, tmp_path):
    own = shutil.copytree(tiny_data.store, tmp_path / "store")
    sets = ("run.num_steps=100000", "upkeep.eval_every=100000", "upkeep.hang_seconds=15")
    arguments = [argument for text in sets for argument in ("--set", text)]
    pod = start_pod(
        *("train", experiment_file, "--workdir", tmp_path / "run", *arguments),
        of_second=("--set", f"data.store={own}"),
    )
    while not steps(epath.Path(tmp_path / "run")):
        assert pod[0].poll() is None
    make_reads_hang(own)
    printed = [process.communicate(timeout=60)[0] for process in pod]
    assert [process.returncode for process in pod] == [1, 1], printed
    for text in printed:
        assert 'File "' in text and "train.py" in text and "hread 0x" in text  # the stacks
        assert "was the last, " in text.splitlines()[-1]
        assert text.splitlines()[-1].endswith("goes on from the newest checkpoint")
    assert "in train_from_newest" in printed[1]
    named = f"; the others wait for process 1 on {socket.gethostname()}, in input at step "
    assert named in printed[0].splitlines()[-1]


@pytest.mark.parametrize("reader", ["all", "one"])
def test_a_checkpoint_that_one_cannot_read_is_no_checkpoint_for_all(
    trained, experiment_file, tmp_path, reader
):
    """A file that is cut short, on the disk or, by a mount of its own, for one process only."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    file = largest_file(workdir / "checkpoints/12/model")
    through: tuple[str, ...] = ()
    if reader == "all":
        truncate(file)
    else:
        half = tmp_path / "half"
        half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        through = ("unshare", "--mount", "sh", "-c", mount, "sh", str(half), str(file))
        if subprocess.run([*through, "true"], capture_output=True).returncode != 0:
            pytest.skip("mounts need root")
    pod = start_pod("train", experiment_file, "--workdir", workdir, second_through=through)
    printed = [process.communicate()[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    for text in printed:
        (line,) = (line for line in text.splitlines() if "skipped" in line)
        assert "checkpoints/12 is damaged" in line
    assert "(process 1): checkpoint" in printed[0] or reader == "all"
    assert steps(epath.Path(workdir)) == [6, 9, 12] and (workdir / "damaged/12.0").exists()
    np.testing.assert_allclose(list(losses(workdir).values()), list(losses(trained).values()), 1e-5)


def test_a_pod_goes_on_from_the_newest_checkpoint_that_is_on_all_its_disks(
    experiment_file, tmp_path
):
    workdir, disks = tmp_path / "run", [tmp_path / "a", tmp_path / "b"]
    sets = ("run.num_steps=40", "upkeep.eval_every=40", "upkeep.checkpoint_every=40")
    arguments = [argument for text in sets for argument in ("--set", text)]

    def start() -> list[subprocess.Popen[str]]:
        a, b = (("--set", f"upkeep.local_dir={disk}") for disk in disks)
        often = ("--set", "upkeep.local_every=4")
        train = ("train", experiment_file, "--workdir", workdir, *arguments, *often)
        return start_pod(*train, *a, of_second=b)

    def kept(disk: Path) -> list[int]:
        return [step for run in disk.glob("*") for step in steps(epath.Path(run))]

    pod = start()
    while not all(len(kept(disk)) == 2 for disk in disks):
        assert pod[0].poll() is None
    for process in pod:
        process.kill()
        process.communicate()
    assert steps(epath.Path(workdir)) == []
    of_both = sorted({*kept(disks[0])} & {*kept(disks[1])})
    (run,) = disks[1].iterdir()
    shutil.rmtree(run / f"checkpoints/{of_both[-1]}")
    printed = [process.communicate()[0] for process in start()]
    record = json.loads((workdir / "attempts/0002.json").read_text())
    left = of_both[-2] if len(of_both) == 2 else 0
    assert record["first_step"] == left and steps(epath.Path(workdir)) == [40], printed
    assert list(losses(workdir)) == list(range(1, 41))


WORKER = """
import itertools, json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from llama_jax.config import BATCH_KEYS, DataConfig
from llama_jax.data import batches

fields, process, out, port = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
fields = json.loads(fields)
data = DataConfig(**fields | {"mixture": tuple(map(tuple, fields["mixture"]))})
axes = (AxisType.Explicit,) * 2
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=axes)
sharding = NamedSharding(mesh, P(None, "fsdp", None))
stream = batches.train_batches(data, 2, sharding, itertools.count(2))
parts = {}
for step in range(3):
    batch = next(stream)
    for key, name in enumerate(BATCH_KEYS):
        for shard in batch[name].addressable_shards:
            a, b, _ = [s.indices(n)[:2] for s, n in zip(shard.index, batch[name].shape)]
            parts[f"{step} {key} {a[0]} {a[1]} {b[0]} {b[1]}"] = np.asarray(shard.data)
np.savez(f"{out}/{process}.npz", **parts)
"""
