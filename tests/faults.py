"""An afternoon on a pod of four hosts: faults at random, while one model is trained to its end.

    python tests/faults.py --faults 30 --seed 0

The hosts are network namespaces, so it takes root. Prints a table of what was done, what the others
said, after how many seconds, and the steps that were lost; then compares the model, bit for bit,
and the metrics with those of a run that nothing disturbed.
"""

import argparse
import contextlib
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from helpers.damage import flip_a_byte, largest_file, truncate
from helpers.hosts import Host, hosts
from helpers.processes import environment
from helpers.runs import fingerprints, losses
from helpers.stores import write_split
from llama_jax.config import DataConfig
from llama_jax.run.goodput import goodput, goodput_table, read_attempts
from llama_jax.run.workdir import checkpoints_dir, steps

EXPERIMENT = """
from llama_jax.config import *

def get_experiment():
    return Experiment(
        model=ModelConfig(num_layers=2, embed_dim=32, num_heads=4, vocab_size=2048,
                          compute_dtype="float32"),
        data={data!r},
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
        run=RunConfig(num_steps={num_steps}),
        execution=Execution(mesh=MeshConfig(fsdp=4)),
        upkeep=Upkeep(eval_every=100, eval_rows=8, checkpoint_every=20, keep_last=3),
    )
"""
MOST_SECONDS = 120.0  # for all processes to end after a fault
PORT = 9_000


class Pod:
    """One process on each host, and what they print."""

    def __init__(self, machines: list[Host], experiment: Path, workdir: Path, logs: Path):
        self.machines, self.workdir = machines, workdir
        address = f"{machines[0].address}:{PORT}"
        train = (sys.executable, "-m", "llama_jax", "train", experiment, "--workdir", workdir)
        self.logs = [logs / f"{time.time_ns()}-{k}.txt" for k in range(len(machines))]
        self.processes = []
        for k, (host, log) in enumerate(zip(machines, self.logs, strict=True)):
            command = host.command(*train, "--multihost", f"{address},{len(machines)},{k}")
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment())
                )

    def said(self, k: int) -> str:
        return self.logs[k].read_text()

    def statuses(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def wait(self, apart: int | None = None) -> float:
        """Return how many seconds it took until all but one had ended, who then is killed."""
        began = time.monotonic()
        others = [p for k, p in enumerate(self.processes) if k != apart]
        first = None
        while any(p.poll() is None for p in others) and time.monotonic() - began < MOST_SECONDS:
            if first is None and any(p.poll() is not None for p in others):
                first = time.monotonic() - began
            time.sleep(0.05)
        late = [k for k, p in enumerate(self.processes) if p in others and p.poll() is None]
        if late:
            print(f"PROCESSES {late} DID NOT END within {MOST_SECONDS:.0f} s", flush=True)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        return time.monotonic() - began if first is None else first


@dataclasses.dataclass
class Seen:
    """What a fault led to."""

    fault: str
    host: str
    seconds: float
    message: str
    lost: int


def newest(workdir: Path) -> int:
    """Return the newest step in the metrics."""
    with contextlib.suppress(Exception):  # the file may be half rewritten at this moment
        return max(losses(workdir), default=0)
    return 0


# The faults: each causes one, waits for what comes of it, and returns who it was and the seconds.


def kill_one(pod: Pod, rng: random.Random) -> tuple[int, float]:
    k = rng.randrange(len(pod.processes))
    pod.processes[k].kill()
    return k, pod.wait(apart=k)


def kill_all(pod: Pod, rng: random.Random) -> tuple[int, float]:
    for process in pod.processes:
        process.kill()
    return 0, pod.wait()


def kill_all_in_a_save(pod: Pod, rng: random.Random) -> tuple[int, float]:
    saves = checkpoints_dir(epath.Path(pod.workdir))
    while not any("tmp" in path.name for path in saves.iterdir()):
        if any(status is not None for status in pod.statuses()):
            break
    return kill_all(pod, rng)


def stop_one(pod: Pod, rng: random.Random) -> tuple[int, float]:
    k = rng.randrange(len(pod.processes))
    pod.processes[k].send_signal(signal.SIGSTOP)
    return k, pod.wait(apart=k)


def terminate_one(pod: Pod, rng: random.Random) -> tuple[int, float]:
    k = rng.randrange(len(pod.processes))
    pod.processes[k].terminate()
    return k, pod.wait()


def terminate_all(pod: Pod, rng: random.Random) -> tuple[int, float]:
    for process in pod.processes:
        process.terminate()
    return 0, pod.wait()


def pull_a_cable(pod: Pod, rng: random.Random) -> tuple[int, float]:
    k = rng.randrange(len(pod.processes))
    pod.machines[k].link_down()
    seconds = pod.wait()
    pod.machines[k].link_up()
    return k, seconds


def damage_a_checkpoint(pod: Pod, rng: random.Random) -> tuple[int, float]:
    _, seconds = kill_all(pod, rng)
    found = steps(epath.Path(pod.workdir))
    if len(found) > 1:
        item = rng.choice(("model", "optimizer"))
        file = largest_file(pod.workdir / f"checkpoints/{found[-1]}/{item}")
        rng.choice((truncate, flip_a_byte))(file)
    return 0, seconds


def fill_the_disk(pod: Pod, rng: random.Random) -> tuple[int, float]:
    """Until the run has said so; then it has room again, and goes on."""
    ballast, began = pod.workdir.parent / "ballast", time.monotonic()
    with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    while "could not be saved" not in pod.said(0):
        if any(s is not None for s in pod.statuses()) or time.monotonic() - began > MOST_SECONDS:
            break
        time.sleep(0.02)
    ballast.unlink()
    return 0, time.monotonic() - began


FAULTS: tuple[Callable[[Pod, random.Random], tuple[int, float]], ...] = (
    *(kill_one, kill_one, kill_all, kill_all_in_a_save, stop_one, terminate_one, terminate_all),
    *(pull_a_cable, damage_a_checkpoint, fill_the_disk),
)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "llama-jax train:" in line or "WARN" in line]
    return lines[-1] if lines else ""


def disturb(pod: Pod, rng: random.Random) -> Seen:
    """Cause one fault, at a random moment."""
    time.sleep(rng.uniform(0, 3))
    before = newest(pod.workdir)
    fault = rng.choice(FAULTS)
    k, seconds = fault(pod, rng)
    witness = (k + 1) % len(pod.processes) if fault in (kill_one, stop_one, pull_a_cable) else 0
    message = last_line(pod.said(witness))
    ended = any(status is not None for status in pod.statuses())
    kept = (steps(epath.Path(pod.workdir)) or [0])[-1]
    lost = max(0, max(before, newest(pod.workdir)) - kept) if ended else 0
    return Seen(fault.__name__, pod.machines[k].name, seconds, message, lost)


def afternoon(start: Callable[[], Pod], num_faults: int, seed: int) -> Iterator[Seen]:
    """Train to the end, with so many faults on the way."""
    rng, left = random.Random(seed), num_faults
    while True:
        pod = start()
        begin = newest(pod.workdir)
        while None in pod.statuses():
            if left and newest(pod.workdir) >= begin + 3:
                yield disturb(pod, rng)
                left -= 1
                begin = newest(pod.workdir)
            time.sleep(0.1)
        if set(pod.statuses()) == {0}:
            return


def write_store(directory: Path) -> DataConfig:
    """Write tokens that are nearly regular, for a loss to go down on."""
    data = DataConfig(mixture=(("only", 1.0),), store=str(directory), seq_len=64, batch_size=8)
    rng = np.random.default_rng(0)
    tokens = (np.arange(200_000) % 97 + rng.integers(0, 40, 200_000) + 3).astype(np.uint16)
    write_split(data, "only", "train", [tokens], of_tokenizer=True)
    write_split(data, "only", "validation", [tokens[:2_000]], of_tokenizer=True)
    return data


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a file system of 32 MB."""
    directory.mkdir()
    size = ("-t", "tmpfs", "-o", "size=32m", "tmpfs")
    subprocess.run(["mount", *size, str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def compare(workdir: Path, straight: Path, num_steps: int) -> bool:
    """Print whether a run is what the undisturbed one is, and its goodput."""
    same = fingerprints(workdir, num_steps) == fingerprints(straight, num_steps)
    once = list(losses(workdir)) == list(range(1, num_steps + 1))
    equal = losses(workdir) == losses(straight)
    attempts = read_attempts(epath.Path(workdir))
    total = attempts[-1].written - attempts[0].began
    whole = abs(sum(goodput(attempts).values()) - total) < 1e-3 * total
    print(f"parameters and optimizer equal, bit for bit: {same}")
    print(f"each step once: {once}; losses equal: {equal}; goodput adds up to 100%: {whole}")
    Console(width=120).print(goodput_table(attempts))
    return same and once and equal and whole


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = Table("fault", "host", "seconds", "steps lost", "what the others said")
    with (
        tempfile.TemporaryDirectory() as name,
        hosts(4) as machines,
        small_disk(Path(name) / "disk") as disk,
    ):
        directory, experiment = Path(name), Path(name) / "tiny.py"
        data = write_store(directory / "store")
        experiment.write_text(EXPERIMENT.format(data=data, num_steps=args.steps))
        straight, workdir = directory / "straight", disk / "run"
        pod = Pod(machines, experiment, straight, directory)
        if any(process.wait() for process in pod.processes):
            print(pod.said(0))
            return 1
        for seen in afternoon(
            lambda: Pod(machines, experiment, workdir, directory), args.faults, args.seed
        ):
            row = (seen.fault, seen.host, f"{seen.seconds:.1f}", str(seen.lost), seen.message[:150])
            print(" | ".join(row), flush=True)
            table.add_row(*row)
        Console(width=160).print(table)
        return 0 if compare(workdir, straight, args.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
