"""The same run for those who have Kubernetes, as a JobSet, or SkyPilot, as its task: both book,
restart and free slices by themselves."""

import math
import shlex

import yaml

from llama_jax.config import UserError
from llama_jax.hardware import NODE_LABELS, Slice
from llama_jax.pods.revision import REQUIREMENTS

RESTARTS = 1000  # each goes on from the newest checkpoint
SAVE_SECONDS = 300  # between SIGTERM and SIGKILL, if the machine gives as many


def jobset(name: str, target: Slice, spot: bool, image: str, arguments: list[str]) -> str:
    """Return a JobSet, one job a slice and one pod of Kubernetes a host, as YAML.

    arguments: of llama-jax.

    It starts all of them again when one fails, but for status 2, which nothing but a change of the
    command would mend.
    """
    hosts = target.hosts_per_slice
    nodes = {
        "cloud.google.com/gke-tpu-accelerator": NODE_LABELS[target.chip.name],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, target.shape)),
    }
    if spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    chips = {"google.com/tpu": math.prod(target.shape) // hosts}
    container = {
        "name": "train",
        "image": image,
        "command": ["python", "-m", "llama_jax", *arguments],
        "resources": {"requests": chips, "limits": chips},
    }
    needs_mending = {"containerName": "train", "operator": "In", "values": [2]}
    job = {
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": needs_mending}]},
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": SAVE_SECONDS,
                "nodeSelector": nodes,
                "containers": [container],
            }
        },
    }
    mending_fails = {
        "name": "mend-the-command",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return _yaml(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": name,
                # A job has a slice for itself; and GKE tells several of each other.
                "annotations": {
                    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
                },
            },
            "spec": {
                "failurePolicy": {"maxRestarts": RESTARTS, "rules": [mending_fails]},
                "replicatedJobs": [
                    {"name": "slice", "replicas": target.num_slices, "template": {"spec": job}}
                ],
            },
        }
    )


def skypilot(name: str, target: Slice, spot: bool, arguments: list[str]) -> str:
    """Return a task for `sky jobs launch`, run in the clone, as YAML. arguments: of llama-jax.

    Raise UserError for a slice that SkyPilot cannot name.
    """
    kind = target.accelerator_type
    if kind is None or target.num_slices > 1:
        raise UserError(
            f"--slice: SkyPilot books one slice of a usual shape, and {target.name} is none"
        )
    return _yaml(
        {
            "name": name,
            "workdir": ".",
            "resources": {
                "infra": "gcp",
                "accelerators": f"tpu-{kind}:1",
                "accelerator_args": {"runtime_version": target.chip.runtime},
                "use_spot": spot,
            },
            "setup": "\n".join(
                (
                    "curl -LsSf https://astral.sh/uv/install.sh | sh",
                    "~/.local/bin/uv venv --allow-existing --python 3.12",
                    f"~/.local/bin/uv pip install -r {REQUIREMENTS}",
                )
            ),
            "run": shlex.join([".venv/bin/python", "-m", "llama_jax", *arguments]),
        }
    )


def _yaml(document: dict) -> str:
    return yaml.safe_dump(document, sort_keys=False)
