"""A pod's hosts: what is installed, started, asked and stopped on all of them at once."""

import contextlib
import dataclasses
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from llama_jax.hardware import Slice
from llama_jax.pods import cloud as gcloud
from llama_jax.pods import revision
from llama_jax.pods.cloud import Cloud, CloudError
from llama_jax.pods.record import Host, Pod

STOP_SECONDS = 900  # for a save
GRANTED = "ACTIVE"
ENDED = ("SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED", "STOPPED")  # and must be booked again
SCRIPT = Path(__file__).with_name("host.sh")


@dataclasses.dataclass(frozen=True)
class HostState:
    """What host.sh says: running, ended (with the status of `train`, if that is known), idle,
    absent or unreachable."""

    name: str
    status: int | None = None
    line: str = ""  # the newest of the log, or why the host cannot be reached

    def __str__(self) -> str:
        words = self.name
        if self.name == "ended":
            words += " with status " + ("unknown" if self.status is None else str(self.status))
        return f"{words}: {self.line}" if self.line else words


def wait_until_granted(cloud: Cloud, pod: Pod, seconds: float) -> None:
    """Return when the slices are there, looking every so many seconds. Raise CloudError if they
    will not come."""
    shown = None
    while (state := gcloud.state(cloud, pod)) != GRANTED:
        if state is None or state in ENDED:
            raise CloudError(
                f"{pod.name} is {state or 'not there'}; llama-jax pod watch {pod.name} would book "
                "it again"
            )
        if state != shown:
            print(f"{pod.name} is {state}; waiting for {GRANTED}", flush=True)
            shown = state
        time.sleep(seconds)


def install(cloud: Cloud, pod: Pod) -> None:
    """Send the code to all hosts, and make its environment there. Raise CloudError, naming each
    host that failed, when all have ended."""
    with tempfile.TemporaryDirectory() as directory:
        archive, script = Path(directory) / "llama_jax.tar.gz", Path(directory) / gcloud.SCRIPT
        script.write_bytes(SCRIPT.read_bytes())
        revision.pack(pod.experiment, archive)

        # The first connection makes a key, and tells each TPU VM of it: not several at once.
        for host in (host for host in pod.hosts if host.worker == 0):
            with contextlib.suppress(CloudError):  # which comes again, and is named then
                gcloud.scp(cloud, pod, host, [script])

        def install_on(host: Host) -> str:
            gcloud.scp(cloud, pod, host, [archive, script])
            python = [pod.python] if pod.python else []
            return gcloud.ssh(cloud, pod, host, "install", revision.REQUIREMENTS, *python)

        _, failures = gcloud.on_all(pod.hosts, install_on)
    _raise_if(failures, pod, "installation failed")


def run(cloud: Cloud, pod: Pod, arguments: Sequence[str] = ()) -> None:
    """Start `train` on all hosts, detached. arguments: further ones of train.

    Raise CloudError, naming hosts, and start nothing, if one does not answer, has no code or trains
    already.
    """
    if not cloud.dry_run:
        found = states(cloud, pod)
        unfit = {
            host: str(state) for host, state in found.items() if state.name not in ("ended", "idle")
        }
        _raise_if(unfit, pod, "not ready, nothing was started")
    train = train_arguments(pod.experiment, pod.overrides, pod.workdir, pod.target)
    joined = pod.coordinator and len(pod.hosts) > 1
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"

    def start_on(host: Host) -> str:
        index = pod.hosts.index(host)
        job = [f"{pod.coordinator},{len(pod.hosts)},{index}"] if joined else []
        words = ("start", name, str(index), host.label, pod.workdir, *train, *job, *arguments)
        try:
            return gcloud.ssh(cloud, pod, host, *words)
        except CloudError:  # the connection broke, before or after: the second one knows
            return gcloud.ssh(cloud, pod, host, *words)

    started, failures = gcloud.on_all(pod.hosts, start_on)
    if failures:
        gcloud.on_all(list(started), lambda host: gcloud.ssh(cloud, pod, host, "stop", "60"))
        _raise_if(failures, pod, "could not be started, the others were stopped")


def train_arguments(
    experiment: str, overrides: Sequence[str], workdir: str, target: Slice
) -> list[str]:
    """Return the arguments of llama-jax, with the code's directory as the current one."""
    sets = [word for text in overrides for word in ("--set", text)]
    to = ["--workdir", workdir, "--slice", target.name]
    together = ["--multihost"] if target.num_slices * target.hosts_per_slice > 1 else []
    return ["train", revision.path_of(experiment), *to, *sets, *together]


def states(cloud: Cloud, pod: Pod) -> dict[Host, HostState]:
    """Return what each host says, by host, in their order."""

    def ask(host: Host) -> str:
        return gcloud.ssh(cloud, pod, host, "state")

    answers, failures = gcloud.on_all(pod.hosts, ask)
    return {
        host: _parse(answers[host]) if host in answers else _unanswered(failures[host])
        for host in pod.hosts
    }


def stop(cloud: Cloud, pod: Pod) -> dict[Host, HostState]:
    """Ask the run to save and end, on all hosts, and return what became of it."""

    def stop_on(host: Host) -> str:
        return gcloud.ssh(cloud, pod, host, "stop", str(STOP_SECONDS))

    answers, failures = gcloud.on_all(pod.hosts, stop_on)
    _raise_if(failures, pod, "could not be stopped")
    return {host: _parse(answers[host]) for host in answers}


def _parse(text: str) -> HostState:
    first, _, last = text.strip().partition("\n")
    name, _, status = first.partition(" ")
    return HostState(name, int(status) if status.isdecimal() else None, last.strip())


def _unanswered(reason: str) -> HostState:
    if gcloud.SCRIPT in reason and "no such file" in reason.lower():
        return HostState("absent")
    return HostState("unreachable", line=reason)


def _raise_if(failures: dict[Host, str], pod: Pod, what: str) -> None:
    if failures:
        each = "; ".join(f"{host}: {reason}" for host, reason in failures.items())
        raise CloudError(f"{len(failures)} of {len(pod.hosts)} hosts: {what}: {each}")
