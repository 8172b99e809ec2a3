"""A gcloud that books, reaches and frees slices of the hosts of helpers/hosts.py.

What its cloud is like is a file of JSON, which tests change; see Cloud. `ssh --worker k` runs the
command on host k, in a home directory of its own, which goes with the slice.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.hosts import Host
from helpers.paths import ROOT

BY_ITSELF = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE".split()  # what a request goes through
GONE = {"SUSPENDED", "FAILED", "PREEMPTED"}


class Cloud:
    """The cloud in a directory: a gcloud to put on the PATH, and its state.

    nodes: TPU VM -> the hosts that it has, by their number; all of them, if it is not named.
    states: queued resource or TPU VM -> those that `describe` gives, each once but the last.
    refuse_create: what `create` answers, if it refuses. refuse_ssh: workers that do not answer.
    cut_start: workers whose connection is cut once, after it has started a run.
    """

    def __init__(self, directory: Path, hosts: list[Host]):
        self.file = directory / "cloud.json"
        self.path = directory / "bin"
        self.homes = directory / "homes"
        self.path.mkdir()
        shim = self.path / "gcloud"
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        shim.write_text(
            f"#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m helpers.fake_gcloud "
            f'{directory} "$@"\n'
        )
        shim.chmod(0o755)
        namespaces = [(host.namespace, host.name, host.address) for host in hosts]
        start = {
            "hosts": namespaces,
            "states": {},
            "nodes": {},
            "calls": [],
            "zone": "",
            "project": "",
        }
        start |= {"refuse_create": "", "refuse_ssh": [], "cut_start": []}
        self.file.write_text(json.dumps(start))

    @classmethod
    def at(cls, directory: Path) -> "Cloud":
        cloud = cls.__new__(cls)
        cloud.file, cloud.homes = directory / "cloud.json", directory / "homes"
        return cloud

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Change the state in a block, alone."""
        with self.file.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            state = json.load(file)
            yield state
            file.seek(0)
            file.truncate()
            json.dump(state, file)

    def set(self, **values) -> None:
        with self.change() as state:
            state |= values

    @property
    def calls(self) -> list[list[str]]:
        """Return all command lines so far."""
        with self.change() as state:
            return state["calls"]

    def take(self, name: str, state: str) -> None:
        """Take the slice away, as preemption does."""
        with self.change() as cloud:
            cloud["states"][name] = [state]
            self._wipe(cloud, name)

    def home(self, worker: int) -> Path:
        return self.homes / str(worker)

    def _hosts(self, state: dict[str, Any], name: str) -> list[int]:
        return state["nodes"].get(name, range(len(state["hosts"])))

    def _wipe(self, state: dict[str, Any], name: str) -> None:
        for number in self._hosts(state, name):
            Host(*state["hosts"][number]).end_processes()
            shutil.rmtree(self.home(number), ignore_errors=True)

    def main(self, words: list[str]) -> None:
        with self.change() as state:
            state["calls"].append(words)
        if words[:2] == ["config", "get-value"]:
            with self.change() as state:
                print(state[words[2].rpartition("/")[2]])
            return
        words = words[1:] if words[0] == "alpha" else words
        args, _ = _parser().parse_known_args(words[4:])
        kind, action = words[2:4]
        getattr(self, f"_{action}")(kind, args)

    def _create(self, kind: str, args: argparse.Namespace) -> None:
        with self.change() as state:
            if state["refuse_create"]:
                sys.exit(f"ERROR: (gcloud.compute.tpus.{kind}.create) {state['refuse_create']}")
            if args.names[0] in state["states"]:
                sys.exit("ERROR: ALREADY_EXISTS: Resource already exists")
            state["states"][args.names[0]] = list(BY_ITSELF)

    def _describe(self, kind: str, args: argparse.Namespace) -> None:
        with self.change() as state:
            states = self._of(state, args)
            now = states.pop(0) if len(states) > 1 else states[0]
            if kind == "tpu-vm":
                shape = f"2x2x{len(self._hosts(state, args.names[0]))}"
                config = {"type": "V4", "topology": shape}
                print(json.dumps({"state": now, "acceleratorConfig": config}))
            else:
                print(json.dumps({"state": {"state": now}}))

    def _delete(self, kind: str, args: argparse.Namespace) -> None:
        with self.change() as state:
            self._of(state, args)
            if kind == "queued-resources" and not args.force:
                sys.exit("ERROR: FAILED_PRECONDITION: it has nodes")
            del state["states"][args.names[0]]
            self._wipe(state, args.names[0])

    def _of(self, state: dict[str, Any], args: argparse.Namespace) -> list[str]:
        if args.names[0] not in state["states"]:
            sys.exit(f"ERROR: NOT_FOUND: Resource {args.names[0]!r} was not found")
        return state["states"][args.names[0]]

    def _reach(self, args: argparse.Namespace) -> tuple[Host, dict[str, str], bool]:
        """Return the host, its environment, and whether the connection is cut."""
        node = args.names[-1].rstrip(":")
        with self.change() as state:
            if not set(state["states"].get(node, ["FAILED"])) - GONE:
                sys.exit("ERROR: NOT_FOUND: there is no such TPU")
            worker = self._hosts(state, node)[int(args.worker)]
            if worker in state["refuse_ssh"]:
                sys.exit("ssh: connect to host 203.0.113.1 port 22: Connection refused")
            cut = worker in state["cut_start"] and " start " in (args.command or "")
            if cut:
                state["cut_start"].remove(worker)
            host = Host(*state["hosts"][worker])
        self.home(worker).mkdir(parents=True, exist_ok=True)
        return host, os.environ | {"HOME": str(self.home(worker))}, cut

    def _ssh(self, kind: str, args: argparse.Namespace) -> None:
        assert kind == "tpu-vm"
        host, environment, cut = self._reach(args)
        environment.pop("PYTHONPATH", None)
        command = host.command("sh", "-c", args.command)
        done = subprocess.run(command, env=environment, cwd=environment["HOME"])
        if cut:
            sys.exit("client_loop: send disconnect: Broken pipe")
        sys.exit(done.returncode)

    def _scp(self, kind: str, args: argparse.Namespace) -> None:
        assert kind == "tpu-vm"
        environment = self._reach(args)[1]
        for name in args.names[:-1]:
            shutil.copy(name, environment["HOME"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    for option in ("--zone", "--project", "--worker", "--command", "--format"):
        parser.add_argument(option)
    parser.add_argument("--force", action="store_true")
    return parser


if __name__ == "__main__":
    Cloud.at(Path(sys.argv[1])).main(sys.argv[2:])
