"""The code that a pod gets: this revision, with what is not committed yet, as one archive."""

import gzip
import importlib.metadata
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import llama_jax
from llama_jax.config import UserError
from llama_jax.loading import find

PACKAGE = Path(llama_jax.__file__).resolve().parent
ROOT = PACKAGE.parent
REQUIREMENTS = "requirements-tpu.txt"


def pack(experiment: str, archive: Path) -> None:
    """Write the archive, gzipped.

    It holds a clone's files, but those that git ignores; or else the installed package. Beside them
    lie the experiment's file, if it is not one of them, REVISION and REVISION.patch, which is what
    was not committed. Raise UserError if there is no such experiment.
    """
    if (ROOT / ".git").exists():
        with tempfile.TemporaryDirectory() as directory:
            index = {"GIT_INDEX_FILE": f"{directory}/index"}
            _git(index, "read-tree", "HEAD")
            _git(index, "add", "--all")
            tree = _git(index, "write-tree").decode().strip()
        revision = _git({}, "rev-parse", "--short=12", "HEAD").strip()
        patch = _git({}, "diff", "--binary", "HEAD", tree)
        content = _git({}, "archive", "--format=tar", tree)
    else:
        revision, patch = importlib.metadata.version("llama-jax").encode(), b""
        content = _tar_of_package()
    added = {"REVISION": revision, "REVISION.patch": patch}
    if not _lies_in_code(experiment):
        added[path_of(experiment)] = find(experiment).read_bytes()
    with tarfile.open(fileobj=(files := io.BytesIO(content)), mode="a") as tar:
        for name, data in added.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with gzip.open(archive, "wb", compresslevel=1) as packed:
        packed.write(files.getvalue())


def path_of(experiment: str) -> str:
    """Return where an experiment's file lies on a host, in the directory of the code. Raise
    UserError if there is none."""
    path = find(experiment).resolve()
    return str(path.relative_to(ROOT)) if _lies_in_code(experiment) else path.name


def _lies_in_code(experiment: str) -> bool:
    path = find(experiment).resolve()
    if not (ROOT / ".git").exists():
        return path.is_relative_to(PACKAGE)
    if not path.is_relative_to(ROOT):
        return False
    listed = _git({}, "ls-files", "--cached", "--others", "--exclude-standard", "--", str(path))
    return bool(listed)


def _tar_of_package() -> bytes:
    with tarfile.open(fileobj=(files := io.BytesIO()), mode="w") as tar:
        tar.add(PACKAGE, PACKAGE.name, filter=_without_caches)
        for path in PACKAGE.glob("requirements*.txt"):
            tar.add(path, path.name)
    return files.getvalue()


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith("__pycache__") else member


def _git(environment: dict[str, str], *words: str) -> bytes:
    """Return what git prints in the clone. Raise UserError if it fails."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True)
    except FileNotFoundError as e:
        raise UserError("git is not installed, and this is a clone") from e
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
