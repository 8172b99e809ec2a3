"""Manifests: what the schema of JobSets and SkyPilot's own parser say of them."""

import json
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT

SCHEMA = ROOT / "tests/schemas/jobset.json"
TO = ("--workdir", "gs://b/r", "--set", "run.num_steps=300", "--spot")


def rendered(cli, target: str, *options: str) -> tuple[str, Any]:
    done = cli("pod", "manifest", "quickstart", "--slice", target, *TO, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout, yaml.safe_load(done.stdout)


def strict(schema: Any) -> Any:
    """Return a schema that refuses fields which it does not know, as kubectl does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    refusing = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return refusing | {key: strict(value) for key, value in schema.items()}


@pytest.mark.parametrize(
    ("target", "slices", "hosts", "chips", "label"),
    [
        ("v5p:4x4x4", 1, 16, 4, "tpu-v5p-slice"),
        ("2xv5e:16x16", 2, 64, 4, "tpu-v5-lite-podslice"),
        ("v6e:2x4", 1, 1, 8, "tpu-v6e-slice"),
        ("tpu7x:4x4x4", 1, 16, 4, "tpu7x"),
    ],
)
def test_a_jobset_is_valid_and_has_a_pod_a_host(cli, target, slices, hosts, chips, label):
    jsonschema = pytest.importorskip("jsonschema")
    _, jobset = rendered(cli, target, "--to", "jobset", "--image", "r.pkg.dev/i:1")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(jobset, schema)
    spec_schema = strict(schema["properties"]["spec"])
    jsonschema.validate(jobset["spec"], spec_schema)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["completions"], spec["parallelism"]) == (slices, hosts, hosts)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert ("--multihost" in container["command"]) == (slices * hosts > 1)
    with pytest.raises(jsonschema.ValidationError):
        pod["restart"] = "Never"
        jsonschema.validate(jobset["spec"], spec_schema)


def test_skypilot_reads_its_task(cli, tmp_path):
    text, task = rendered(cli, "v5p:4x4x4", "--to", "skypilot")
    assert task["run"].endswith("--slice v5p:4x4x4 --set run.num_steps=300 --multihost")
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    (tmp_path / "task.yaml").write_text(text)
    (resources,) = sky.Task.from_yaml(str(tmp_path / "task.yaml")).resources
    assert resources.accelerators == {"tpu-v5p-128": 1} and resources.use_spot


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slice", "v5p:4x4x4", "--to", "jobset"), "--image: --to jobset needs one"),
        (
            ("--slice", "h100:8", "--to", "jobset", "--image", "i"),
            "a pod is of TPUs, and h100:8 is not",
        ),
        (("--slice", "v5p:4x4x16", "--to", "skypilot"), "one slice of a usual shape"),
    ],
)
def test_what_cannot_be_written_is_refused(cli, options, message):
    done = cli("pod", "manifest", "quickstart", "--workdir", "gs://b/r", *options)
    assert done.returncode == 2 and message in done.stderr
