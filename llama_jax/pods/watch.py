"""watch: keep a run going until it is done, whatever happens to its slices.

It remembers nothing that matters: what it does next follows from what gcloud and the hosts say, so
that it may be killed at any time and started again. Each decision is a line of JSON.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator

from llama_jax.config import UserError
from llama_jax.pods import cloud as gcloud
from llama_jax.pods import launcher
from llama_jax.pods.cloud import Cloud, CloudError
from llama_jax.pods.launcher import ENDED, GRANTED, HostState
from llama_jax.pods.record import Host, Pod, directory, file

ATTEMPTS = 5
LOST_LOOKS = 10  # in a row at hosts of which some are idle and some do not answer


class GaveUp(RuntimeError):
    """Nothing that `watch` may do would help; the message says why."""


class Watch:
    """Looks at a pod, and does what has to be done."""

    def __init__(self, cloud: Cloud, pod: Pod, attempts: int):
        self.cloud, self.pod, self.attempts = cloud, pod, attempts
        self.step = -1  # of the newest checkpoint seen
        self.failures = 0  # since that was seen
        self.lost = 0  # such looks so far
        self.said: tuple | None = None

    def keep_going(self, seconds: float) -> None:
        """Return when the run is done. seconds: between two looks. Raise GaveUp."""
        self.state = gcloud.state(self.cloud, self.pod)  # what is wrong from the start is no fault
        while not self._look():
            time.sleep(seconds)
            try:
                self.state = gcloud.state(self.cloud, self.pod)
            except CloudError as e:  # of this machine's network, and none of the pod
                self._say("wait", str(e))
                continue

    def _look(self) -> bool:
        """Do the next thing, and say whether all is done."""
        try:
            if self.state is None or self.state in ENDED:
                self._book(f"it is {self.state or 'gone'}")
            elif self.state != GRANTED:
                self._say("wait", "not granted yet")
            else:
                return self._look_at_hosts()
        except CloudError as e:
            self._count(str(e))
        return False

    def _book(self, reason: str) -> None:
        """Give back what there is, and ask for it again."""
        if self.pod.provisioning == "adopted":
            raise self._given_up(f"{reason}; it was adopted, and only its maker can make it again")
        if self.state is not None:
            self._count(reason)
            self._say("delete", "frees the name and the quota")
            gcloud.delete(self.cloud, self.pod)
        self._say("create", reason)
        gcloud.create(self.cloud, self.pod)

    def _look_at_hosts(self) -> bool:
        states = launcher.states(self.cloud, self.pod)
        names = {state.name for state in states.values()}
        described = "; ".join(f"{host}: {state}" for host, state in states.items())
        if "unreachable" in names:
            # If no host answers, it may be this machine's network: nothing is given back for that.
            idle = names - {"unreachable"} and "running" not in names
            self.lost = self.lost + 1 if idle else 0
            if self.lost < LOST_LOOKS:
                self._say("wait", described)
            else:
                self.lost = 0
                self._book(described)
        elif "absent" in names and "running" not in names:
            self._say("install", "there is no code on it")
            launcher.install(self.cloud, self.pod)
        else:
            return self._look_at_run(states, described)
        return False

    def _look_at_run(self, states: dict[Host, HostState], described: str) -> bool:
        names = {state.name for state in states.values()}
        self._see_step()
        if "running" in names:
            self._say("wait", f"training, newest checkpoint: {self._newest()}")
        elif all(state.status == 0 for state in states.values()):
            self._say("done", described)
            return True
        elif any(state.status == 2 for state in states.values()):
            raise self._given_up(f"the command needs mending: {described}")
        else:
            if "ended" in names:
                self._count(described)
            self._say("run", f"goes on from checkpoint {self._newest()}")
            launcher.run(self.cloud, self.pod)
        return False

    def _see_step(self) -> None:
        first = self.pod.hosts[0]
        with contextlib.suppress(CloudError):  # what it does not say is not new
            answer = gcloud.ssh(self.cloud, self.pod, first, "newest", self.pod.workdir).strip()
            if answer.isdecimal() and int(answer) > self.step:
                self.step, self.failures = int(answer), 0

    def _newest(self) -> str:
        return "none" if self.step < 0 else str(self.step)

    def _count(self, reason: str) -> None:
        """Count a failure. Raise GaveUp for one too many without a new checkpoint."""
        self.failures += 1
        self._say("failure", f"{self.failures} of {self.attempts}: {reason}")
        if self.failures >= self.attempts:
            raise self._given_up(
                f"{self.failures} failures in a row without a new checkpoint: {reason}"
            )

    def _given_up(self, reason: str) -> GaveUp:
        self._say("give up", reason)
        return GaveUp(f"gave up on {self.pod.name}: {reason}")

    def _say(self, decision: str, reason: str) -> None:
        """Write a decision down and print it, unless it is the one before."""
        said = (self.state, decision, reason)
        if said == self.said:
            return
        self.said = said
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"time": now, "pod": self.pod.name, "state": self.state or "gone"}
        with decisions(self.pod).open("a") as log:
            log.write(json.dumps(row | {"decision": decision, "reason": reason}) + "\n")
        print(f"{now} {row['state']}: {decision}: {reason}", flush=True)


def decisions(pod: Pod):
    return file(pod.name, ".watch.jsonl")


@contextlib.contextmanager
def alone(pod: Pod) -> Iterator[None]:
    """Keep other watches of a pod out during a block. Raise UserError if one is at work, with its
    process and host."""
    directory().mkdir(parents=True, exist_ok=True)
    with file(pod.name, ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"pod: {pod.name} is watched by {lock.read()}, which would start it again; end "
                "that first"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
        lock.truncate(0)
