"""The code that a pod gets: what is committed, changed and new, and what the patch says of it."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from llama_jax.pods import revision

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(clone: Path, *words: str) -> str:
    command = ["git", "-C", str(clone), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone with a file of each kind."""
    clone = tmp_path / "clone"
    (clone / "llama_jax").mkdir(parents=True)
    git(clone, "init", "--quiet")
    for name in ("llama_jax/a.py", "llama_jax/gone.py", "b.bin"):
        (clone / name).write_bytes(b"committed\n\0")
    (clone / ".gitignore").write_text("ignored*\n")
    git(clone, "add", "--all")
    git(clone, *AUTHOR, "commit", "--quiet", "--message", "x")
    (clone / "llama_jax/a.py").write_text("changed\n")
    (clone / "llama_jax/gone.py").unlink()
    (clone / "b.bin").write_bytes(b"\0\1\2")
    (clone / "new.py").write_text("new\n")
    (clone / "ignored.py").write_text("ignored\n")
    monkeypatch.setattr(revision, "ROOT", clone)
    monkeypatch.setattr(revision, "PACKAGE", clone / "llama_jax")
    return clone


def packed(experiment: Path, directory: Path) -> Path:
    """Unpack what a pod gets."""
    revision.pack(str(experiment), directory / "code.tar.gz")
    with tarfile.open(directory / "code.tar.gz") as archive:
        archive.extractall(directory / "code", filter="data")
    return directory / "code"


def files(directory: Path) -> dict[str, bytes]:
    found = (p for p in directory.rglob("*") if p.is_file() and ".git" not in p.parts)
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_a_clone_is_sent_as_it_lies_there(clone, tmp_path):
    before = git(clone, "status", "--porcelain")
    code = packed(clone / "new.py", tmp_path)
    sent = files(code)
    expected = {name: data for name, data in files(clone).items() if name != "ignored.py"}
    assert {name: sent[name] for name in expected} == expected
    assert sent.keys() - expected.keys() == {"REVISION", "REVISION.patch"}
    assert git(clone, "status", "--porcelain") == before

    again = tmp_path / "again"  # revision and patch are the same code
    git(tmp_path, "clone", "--quiet", str(clone), str(again))
    git(again, "checkout", "--quiet", (code / "REVISION").read_text())
    git(again, "apply", str(code / "REVISION.patch"))
    assert files(again) == expected


@pytest.mark.parametrize("name", ["ignored.py", "../outside.py"])
def test_an_experiment_that_is_not_in_the_clone_is_sent_with_it(clone, tmp_path, name):
    (clone / name).write_text("its own\n")
    code = packed(clone / name, tmp_path)
    assert (code / revision.path_of(str(clone / name))).read_text() == "its own\n"


def test_an_installed_package_is_sent_with_its_requirements(clone, tmp_path):
    shutil.rmtree(clone / ".git")
    (clone / "llama_jax" / revision.REQUIREMENTS).write_text("jax\n")
    (clone / "llama_jax/__pycache__").mkdir()
    (clone / "llama_jax/__pycache__/a.pyc").write_bytes(b"")
    sent = files(packed(clone / "new.py", tmp_path))
    assert sent["llama_jax/a.py"] == b"changed\n" and sent["new.py"] == b"new\n"
    assert sent[revision.REQUIREMENTS] == b"jax\n" and b"." in sent["REVISION"]
    assert "b.bin" not in sent and "llama_jax/__pycache__/a.pyc" not in sent
