"""Every command of gcloud that the launcher makes, read by Google's own parser, which knows no
account here: a flag that it does not know is refused before."""

import concurrent.futures
import os
import re
import shlex
import shutil
import subprocess

import pytest

from helpers.paths import ROOT
from llama_jax.pods import launcher, record
from llama_jax.pods.record import Pod

pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
PLACE = ("--zone", "us-east5-a", "--project", "p")


@pytest.fixture
def gcloud(tmp_path):
    """Run Google's gcloud with a configuration of its own."""

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        own = {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_CORE_PROJECT": "p"}
        return subprocess.run(command, env=os.environ | own, capture_output=True, text=True)

    return run


def test_all_commands_are_understood(cli, gcloud, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    printed = []
    for options in (
        ("--slice", "v5p:4x4x4"),
        ("--slice", "2xv6e:16x16", "--spot", "--service-account", "a@p.iam.gserviceaccount.com"),
        ("--slice", "v5p:4x4x16", "--reserved"),
    ):
        options += ("--workdir", "gs://b/r", "--dry-run")
        done = cli("pod", "create", "quickstart", *PLACE, *options)
        printed += done.stdout.splitlines()
    for provisioning in ("spot", "adopted"):
        remember(provisioning)
        for action in ("install", "run", "status", "logs", "stop", "delete", "watch"):
            printed += cli("pod", action, "llama-7b", "--dry-run").stdout.splitlines()
    commands = {tuple(normal(line)) for line in printed}
    shell = launcher.SCRIPT.read_text()
    in_script = re.findall(r"gcloud storage \w+ (?:--quiet )?", shell)
    commands |= {(*shlex.split(text), "gs://b/x", "gs://b/y") for text in in_script}
    commands |= {tuple(shlex.split(line)) for line in of_the_page("gcloud (services|storage|iam)")}
    verbs = {word for command in commands for word in command if not word.startswith("-")}
    assert verbs > {"create", "delete", "describe", "ssh", "scp", "cp", "ls", "alpha", "enable"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = dict(zip(commands, pool.map(gcloud, map(list, commands)), strict=True))
    refused = {command: done.stderr for command, done in answers.items() if not understood(done)}
    assert refused == {}
    wrong = gcloud([*next(iter(commands)), "--zoo"])
    assert not understood(wrong)


def test_the_commands_of_the_page_are_ours(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    created, *others = of_the_page("llama-jax pod (?!manifest)")
    done = cli(*shlex.split(created)[1:], *PLACE, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gcloud compute tpus queued-resources create llama-7b ")
    remember("spot")
    assert len(others) == 7
    for line in others:
        done = cli(*shlex.split(line)[1:], "--dry-run")
        assert done.returncode == 0 and done.stdout.startswith("gcloud compute tpus "), line
    for line in of_the_page("llama-jax pod manifest"):
        words = shlex.split(line.partition(">")[0])
        assert cli(*words[1:]).returncode == 0, line


def of_the_page(start: str) -> list[str]:
    page = (ROOT / "tpu_setup/README.md").read_text()
    return [match[0] for match in re.finditer(rf"(?m)^{start}.*", page)]


def remember(provisioning: str) -> None:
    record.write(
        Pod(
            name="llama-7b",
            zone="us-east5-a",
            project="p",
            slice="v4:2x2x1",
            provisioning=provisioning,
            experiment="quickstart",
            overrides=("run.num_steps=3",),
            workdir="gs://b/r",
        )
    )


def normal(line: str) -> list[str]:
    """Return a command as it is but for the verb of host.sh, which gcloud does not read, and for
    files that are gone."""
    words = [re.sub("^/.*", "file", word) for word in shlex.split(line)]
    if "--command" in words:
        words[words.index("--command") + 1] = "sh"
    return words


def understood(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 1 and "active account" in done.stderr
