"""gcloud: the commands that book, reach and free a pod. Each is printed before it runs."""

import concurrent.futures
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llama_jax.config import UserError
from llama_jax.hardware import ACCELERATORS, Slice, parse_slice
from llama_jax.pods.record import Host, Pod

AT_ONCE = 32  # processes of gcloud
SCRIPT = "llama_jax_host.sh"  # on each host, in the home directory
# A host that is gone is given up after a minute, before and after the connection stands.
SSH = ("-oConnectTimeout=60", "-oServerAliveInterval=20", "-oServerAliveCountMax=3")
TPUS = ("compute", "tpus")
KINDS = {"V5LITE_POD": "v5e"}  # of the Cloud TPU API, where it is not the chip's name
LAST_LINES = 3  # of what a command printed, in the message of its failure


class CloudError(OSError):
    """A command of gcloud failed; the message has the last lines of what it said."""


class Cloud:
    """Runs the commands, or with dry_run prints them only."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run
        self.printed: set[str] = set()

    def run(self, *words: str) -> str:
        """Return what gcloud prints. Raise CloudError if it fails."""
        command = self.show(*words)
        if self.dry_run:
            return ""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
            )
        except FileNotFoundError as e:
            raise UserError("gcloud is not installed: https://cloud.google.com/sdk/docs") from e
        if done.returncode:
            lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()[-LAST_LINES:]
            said = "; ".join(line.strip() for line in lines if line.strip())
            raise CloudError(said or f"gcloud ended with status {done.returncode}")
        return done.stdout

    def stream(self, *words: str) -> int:
        """Have gcloud print to where we do, and return its status."""
        command = self.show(*words)
        return 0 if self.dry_run else subprocess.call(command, stdin=subprocess.DEVNULL)

    def tell(self, text: str) -> None:
        """Print what came of the commands, if they were run."""
        if not self.dry_run:
            print(text, flush=True)

    def show(self, *words: str) -> list[str]:
        """Print a command, but no repetition, and return it."""
        command = ["gcloud", *words, "--quiet"]
        text = shlex.join(command)
        if text not in self.printed:
            self.printed.add(text)
            print(text, file=sys.stdout if self.dry_run else sys.stderr, flush=True)
        return command


def configured(name: str) -> str:
    """Return a property of gcloud's own configuration, such as compute/zone; empty if unset."""
    command = ["gcloud", "config", "get-value", name, "--quiet"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


# Booking


def create(cloud: Cloud, pod: Pod) -> None:
    """Ask for the slices; they are granted later."""
    runtime = pod.target.chip.runtime
    assert runtime is not None
    if pod.target.num_slices == 1:
        nodes = ["--node-id", pod.name]
    else:
        nodes = ["--node-count", str(pod.target.num_slices), "--node-prefix", pod.name]
    release, shape = _shape(pod.target)
    provisioning = [] if pod.provisioning == "on-demand" else [f"--{pod.provisioning}"]
    account = ["--service-account", pod.service_account] if pod.service_account else []
    cloud.run(
        *(*release, *TPUS, "queued-resources", "create", pod.name, *_where(pod), *nodes, *shape),
        *("--runtime-version", runtime, *provisioning, *account),
    )


def _shape(target: Slice) -> tuple[list[str], list[str]]:
    """Return gcloud's release and options for a shape: the alpha one, for unusual ones."""
    if name := target.accelerator_type:
        return [], ["--accelerator-type", name]
    kind = next(name for name, (chip, _) in ACCELERATORS.items() if chip == target.chip.name)
    return ["alpha"], ["--type", kind, "--topology", "x".join(map(str, target.shape))]


def delete(cloud: Cloud, pod: Pod) -> None:
    """Free the slices, and the name."""
    if pod.provisioning == "adopted":
        cloud.run(*TPUS, "tpu-vm", "delete", pod.name, *_where(pod))
    else:
        cloud.run(*TPUS, "queued-resources", "delete", pod.name, *_where(pod), "--force")


def state(cloud: Cloud, pod: Pod) -> str | None:
    """Return the state, such as ACTIVE, WAITING_FOR_RESOURCES or SUSPENDED; None if it is gone.

    The READY of a TPU VM that was adopted is given as ACTIVE.
    """
    kind = "tpu-vm" if pod.provisioning == "adopted" else "queued-resources"
    try:
        text = cloud.run(*TPUS, kind, "describe", pod.name, *_where(pod), "--format", "json")
    except CloudError as e:
        if "NOT_FOUND" in str(e) or "not found" in str(e).lower():
            return None
        raise
    if cloud.dry_run:
        return "ACTIVE"
    found = json.loads(text).get("state")
    found = found.get("state") if isinstance(found, dict) else found
    return "ACTIVE" if found == "READY" else found


def adopted_slice(cloud: Cloud, name: str, zone: str, project: str) -> Slice | None:
    """Return the slice that a TPU VM which exists is; None if nothing was asked. Raise UserError
    if it is older than v4."""
    where = ("--zone", zone, "--project", project)
    text = cloud.run(*TPUS, "tpu-vm", "describe", name, *where, "--format", "json")
    if cloud.dry_run:
        return None
    found = json.loads(text)
    shape = found.get("acceleratorConfig")
    if shape is None:
        kind = found.get("acceleratorType")
        raise UserError(f"pod: {name} is a {kind}, expected a chip from v4 on")
    chip = KINDS.get(shape["type"], shape["type"].lower())
    return parse_slice(f"{chip}:{shape['topology']}")


def _where(pod: Pod) -> tuple[str, ...]:
    return ("--zone", pod.zone, "--project", pod.project)


# Hosts


def ssh(cloud: Cloud, pod: Pod, host: Host, *words: str) -> str:
    """Run a verb of host.sh on a host, and return what it prints."""
    return cloud.run(*_ssh(pod, host, words))


def stream(cloud: Cloud, pod: Pod, host: Host, *words: str) -> int:
    """Run a verb of host.sh on a host, printing what it prints, and return its status."""
    return cloud.stream(*_ssh(pod, host, words))


def _ssh(pod: Pod, host: Host, words: tuple[str, ...]) -> list[str]:
    command = shlex.join(["sh", SCRIPT, *words])
    flags = [f"--ssh-flag={flag}" for flag in SSH]
    to = (*TPUS, "tpu-vm", "ssh", host.node, *_where(pod), "--worker", str(host.worker))
    return [*to, *flags, "--command", command]


def scp(cloud: Cloud, pod: Pod, host: Host, files: list[Path]) -> None:
    """Copy files into the home directory of a host."""
    flags = [f"--scp-flag={flag}" for flag in SSH]
    worker = (*_where(pod), "--worker", str(host.worker))
    names = map(str, files)
    cloud.run(*TPUS, "tpu-vm", "scp", *names, f"{host.node}:", *worker, *flags)


def on_all(
    hosts: list[Host], action: Callable[[Host], str]
) -> tuple[dict[Host, str], dict[Host, str]]:
    """Return what an action returns for each host, and for each that fails why. All are tried."""
    answers, failures = {}, {}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {host: pool.submit(action, host) for host in hosts}
        for host, future in futures.items():
            try:
                answers[host] = future.result()
            except CloudError as e:
                failures[host] = str(e)
    return answers, failures
