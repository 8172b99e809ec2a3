"""What is remembered of a pod: one file of JSON, under ~/.config/llama_jax/pods.

NAME.json         how it was booked, and what it is for
NAME.watch.jsonl  what `watch` decided
NAME.lock         which `watch` is at work
"""

import dataclasses
import json
import os
import re
from pathlib import Path

from etils import epath

from llama_jax.config import UserError
from llama_jax.hardware import Slice, parse_slice
from llama_jax.run.workdir import write_whole

NAME = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")  # gcloud adds to it for hosts of slices
PLACE = re.compile(r"[a-z][-.:a-z0-9]*")  # zones; projects, which may be DOMAIN:PROJECT


@dataclasses.dataclass(frozen=True)
class Host:
    """One VM."""

    node: str  # the TPU VM of gcloud, which is a slice
    worker: int  # of the slice

    def __str__(self) -> str:
        return f"{self.node} worker {self.worker}"

    @property
    def label(self) -> str:
        return f"{self.node}-{self.worker}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """One or several slices that train one experiment."""

    name: str  # of the queued resource, or of the TPU VM that was adopted
    zone: str
    project: str
    slice: str
    provisioning: str  # on-demand, spot, reserved or adopted
    experiment: str
    overrides: tuple[str, ...]
    workdir: str
    service_account: str | None = None  # that the hosts act as; None: the project's default
    python: str | None = None  # that the hosts have; None: `install` makes an environment
    coordinator: str | None = None  # ADDRESS:PORT of the first host; None: JAX knows the pod

    def __post_init__(self):
        check_names(self.name, self.zone, self.project)
        if not self.workdir.startswith(("gs://", "/")):
            raise UserError(
                f"--workdir: got {self.workdir!r}, expected gs://BUCKET/..., or an absolute path "
                "that all hosts share"
            )

    @property
    def target(self) -> Slice:
        return parse_slice(self.slice)

    @property
    def nodes(self) -> list[str]:
        """Return the names of the TPU VMs: those that gcloud gives several slices."""
        slices = self.target.num_slices
        return [self.name] if slices == 1 else [f"{self.name}-{k}" for k in range(slices)]

    @property
    def hosts(self) -> list[Host]:
        per_slice = range(self.target.hosts_per_slice)
        return [Host(node, worker) for node in self.nodes for worker in per_slice]


def check_names(name: str, zone: str, project: str) -> None:
    """Raise UserError for what gcloud would not take, or not as a name."""
    _check("--name", name, NAME, "lower-case letters, digits and dashes, at most 42")
    _check("--zone", zone, PLACE, "a zone such as us-east5-a")
    _check("--project", project, PLACE, "a project's id")


def _check(option: str, text: str, accepted: re.Pattern[str], words: str) -> None:
    if not accepted.fullmatch(text):
        raise UserError(f"{option}: got {text!r}, expected {words}")


def directory() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "llama_jax/pods"


def file(name: str, ending: str = ".json") -> Path:
    return directory() / f"{name}{ending}"


def read(name: str) -> Pod:
    """Return what is remembered of a pod. Raise UserError if that is nothing."""
    _check("pod", name, NAME, "the name of a pod")
    try:
        fields = json.loads(file(name).read_bytes())
        known = {field.name for field in dataclasses.fields(Pod)}
        if not isinstance(fields, dict) or not fields.keys() <= known:
            raise ValueError("it has other fields than a pod")
        for key, value in fields.items():
            fields[key] = tuple(value) if isinstance(value, list) else value
        return Pod(**fields)
    except FileNotFoundError:
        others = ", ".join(sorted(path.stem for path in directory().glob("*.json"))) or "none"
        raise UserError(
            f"pod: no {name!r} is known here; known: {others}; llama-jax pod create makes one, and "
            "adopt takes one that exists"
        ) from None
    except (ValueError, TypeError) as e:
        raise UserError(f"pod: {file(name)} is damaged: {e}") from e


def known() -> list[Pod]:
    return [read(path.stem) for path in sorted(directory().glob("*.json"))]


def write(pod: Pod) -> None:
    directory().mkdir(parents=True, exist_ok=True)
    write_whole(epath.Path(file(pod.name)), json.dumps(dataclasses.asdict(pod), indent=2) + "\n")


def forget(pod: Pod) -> None:
    """Delete the file; what `watch` decided stays."""
    file(pod.name).unlink(missing_ok=True)
