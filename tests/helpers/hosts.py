"""Hosts that are network namespaces: each with a name, an address and a cable that can be pulled.

They hang on a switch, a bridge in a namespace of its own, and reach nothing else. Processes are
started in them by root only, and see the files of this machine.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import unittest
from collections.abc import Iterator
from pathlib import Path

NETWORK = "10.77.0"
FILES = Path("/etc/netns")  # of a namespace: `ip netns exec` mounts them over those of /etc
# Give the process a host name of its own, too.
AS_HOST = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')


class Host:
    """One namespace: its processes have a host name and an address of their own."""

    def __init__(self, namespace: str, name: str, address: str):
        self.namespace, self.name, self.address = namespace, name, address

    def command(self, *command) -> list[str]:
        """Return the command line that runs a command here, in a process with the same id."""
        enter = ("ip", "netns", "exec", self.namespace, *AS_HOST, self.name)
        return [*enter, *map(str, command)]

    def run(self, *command, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*command), capture_output=True, text=True, **options)

    def popen(self, *command, **options) -> subprocess.Popen[str]:
        """Start a process. Its stdout has all that it prints."""
        return subprocess.Popen(
            self.command(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def link_down(self) -> None:
        """Pull the cable: nothing arrives any more, and nobody is told."""
        _ip("-netns", self.namespace, "link", "set", "eth0", "down")

    def link_up(self) -> None:
        _ip("-netns", self.namespace, "link", "set", "eth0", "up")

    def throttle(self, kilobits: int) -> None:
        """Let through so many kilobits a second of what this host sends."""
        self._queue("tbf", "rate", f"{kilobits}kbit", "burst", "32kbit", "latency", "400ms")

    def delay(self, milliseconds: float) -> None:
        """Hold back each packet that this host sends. Skip the test if this kernel cannot."""
        try:
            self._queue("netem", "delay", f"{milliseconds}ms")
        except subprocess.CalledProcessError as e:
            raise unittest.SkipTest(f"netem: {e.stderr.strip()}") from e

    def unhindered(self) -> None:
        """Take back throttle and delay."""
        self._queue("pfifo")

    def _queue(self, *discipline: str) -> None:
        _run("tc", "-netns", self.namespace, *"qdisc replace dev eth0 root".split(), *discipline)

    def processes(self) -> list[int]:
        """Return the ids of all processes that run here."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def end_processes(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """Make so many hosts, and remove them and all of their processes in the end.

    Skip the test where that is not allowed.
    """
    _skip_unless_allowed()
    _clear_away()
    prefix = f"llama-jax-{os.getpid()}"
    switch, found = f"{prefix}-switch", []
    with contextlib.ExitStack() as made:
        _namespace(switch, made)
        _ip("-netns", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-netns", switch, "link", "set", "bridge", "up")
        for k in range(number):
            host = Host(f"{prefix}-{k}", _name(k), _address(k))
            _namespace(host.namespace, made)
            made.callback(host.end_processes)
            cable = ("netns", host.namespace, "type", "veth", "peer", f"port{k}", "netns", switch)
            _know(host.namespace, number, made)
            _ip("link", "add", "eth0", *cable)
            _ip("-netns", switch, "link", "set", f"port{k}", "master", "bridge", "up")
            _ip("-netns", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-netns", host.namespace, "link", "set", device, "up")
            found.append(host)
        yield found


def _clear_away() -> None:
    """Delete what tests left that were killed."""
    for name in [line.split()[0] for line in _ip("netns", "list").splitlines()]:
        match = re.fullmatch(r"llama-jax-(\d+)-\w+", name)
        if match and not Path(f"/proc/{match[1]}").exists():
            Host(name, "", "").end_processes()
            _ip("netns", "delete", name)
            shutil.rmtree(FILES / name, ignore_errors=True)


def _namespace(name: str, made: contextlib.ExitStack) -> None:
    _ip("netns", "add", name)
    made.callback(_ip, "netns", "delete", name)


def _know(namespace: str, number: int, made: contextlib.ExitStack) -> None:
    """Have all hosts' names mean their addresses, as gloo looks up that of its own."""
    directory = FILES / namespace
    directory.mkdir(parents=True)
    made.callback(shutil.rmtree, directory)
    lines = ["127.0.0.1 localhost", *(f"{_address(k)} {_name(k)}" for k in range(number))]
    (directory / "hosts").write_text("\n".join(lines) + "\n")


def _name(k: int) -> str:
    return f"host-{k}"


def _address(k: int) -> str:
    return f"{NETWORK}.{k + 1}"


def _skip_unless_allowed() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "unshare"))):
        raise unittest.SkipTest(
            "hosts are network namespaces, which take root, and ip, tc and unshare"
        )
    name = f"llama-jax-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as e:
        raise unittest.SkipTest(f"no network namespaces here: {e.stderr.strip()}") from e
    _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
