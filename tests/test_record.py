"""What is remembered of pods, and the names that gcloud is given."""

import shlex

import pytest

from llama_jax.pods import record

PLACE = ("--zone", "us-east5-a", "--project", "p")
CREATE = ("create", "quickstart", "--slice", "v5e:4x4")


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "llama_jax/pods"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--name=--force",), "--name: got '--force', expected lower-case letters"),
        (("--name", "a;b"), "--name: got 'a;b'"),
        (("--name", "a" * 43), "at most 42"),
        (("--zone", "$(id)"), "--zone: got '$(id)', expected a zone"),
        (("--project=-p",), "--project: got '-p'"),
        (("--workdir", "runs/x"), "--workdir: got 'runs/x', expected gs://BUCKET/..."),
        (("--slice", "h100:8"), "--slice: a pod is of TPUs, and h100:8 is not"),
        (("--slice", "tpu7x:4x4x4"), "the Cloud TPU API has no tpu7x; llama-jax pod manifest"),
        (("--set", "model.num_layer=1"), "model.num_layer: no such field"),
    ],
)
def test_what_gcloud_must_not_be_given_is_refused(cli, config, changed, message):
    done = cli("pod", *CREATE, *PLACE, "--workdir", "gs://b/r", *changed, "--dry-run")
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""
    assert not config.exists()


def test_the_name_of_a_pod_that_is_adopted_is_looked_at_first(cli):
    done = cli("pod", "adopt", "a;b", "quickstart", *PLACE, "--workdir", "gs://b/r", "--dry-run")
    assert done.returncode == 2 and done.stdout == ""


def test_an_override_reaches_the_hosts_as_one_word(cli, config):
    value = "init=/a b; touch x $(id) 'y'"
    pod = record.Pod(
        name="a",
        zone="z",
        project="p",
        slice="v4:2x2x1",
        provisioning="spot",
        experiment="quickstart",
        overrides=(value,),
        workdir="gs://b/r",
    )
    record.write(pod)
    assert record.read("a") == pod and record.known() == [pod]
    printed = cli("pod", "run", "a", "--dry-run").stdout
    words = shlex.split(printed.splitlines()[-1])
    remote = shlex.split(words[words.index("--command") + 1])
    assert remote[remote.index("--set") + 1] == value


@pytest.mark.parametrize("content", ["", "[1]", '{"name": "a"}', '{"name": "a", "frob": 1}'])
def test_a_damaged_record_is_said_to_be_so(cli, config, content):
    config.mkdir(parents=True)
    (config / "a.json").write_text(content)
    done = cli("pod", "status", "a")
    assert done.returncode == 2 and f"{config}/a.json is damaged: " in done.stderr
    assert cli("pod", "status", "b").stderr.startswith("llama-jax pod: pod: no 'b' is known here")
