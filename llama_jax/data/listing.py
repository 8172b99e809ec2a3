"""The files of a source, by split: CORPUS/SOURCE/{train,validation}*, or where data.sources says.

    a directory       with files {train,validation}*, or as save_to_disk of Hugging Face or TFDS
                      have written it
    a pattern         of files: *, ?, [abc], ** for folders of any depth, and {split}, which stands
                      for train and validation where there are files of both
    tfds:NAME:VERSION what TFDS has prepared, in its own directory

A path is one beneath data.corpus, unless it is absolute or gs://.
"""

import glob
import json
import os
import re
from pathlib import Path

import fsspec
from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.place import in_bucket, place

EMBEDDED = Path(__file__).parent / "corpus"
SPLIT = "{split}"
TFDS_HOME = Path("~/tensorflow_datasets")
TFDS_NAME = re.compile(r"tfds:([\w/-]+):([\w.]+)")


def files(data: DataConfig, source: str, split: str) -> list[epath.Path]:
    """Return the files of one split of a source, by name; none if it has no validation files.

    Raises UserError if there is nothing where the source should be.
    """
    where = next((where for name, where, _ in data.sources if name == source), source)
    root = _root(data, where)
    if SPLIT in where:
        return _some(root, source, split)
    if glob.has_magic(where):
        return _some(root, source, split) if split == "train" else []
    if root.is_dir():
        return _in_directory(root, source, split)
    if root.exists():
        return [root] if split == "train" else []
    raise UserError(
        f"data.mixture: source {source!r} has no directory {root}; make it, with files train*, or "
        "say in data.sources where the source lies"
    )


def _root(data: DataConfig, where: str) -> epath.Path:
    if where.startswith("tfds:"):
        match = TFDS_NAME.fullmatch(where)
        if match is None:
            raise UserError(f"data.sources: got {where!r}, expected tfds:NAME[/CONFIG]:VERSION")
        return epath.Path(TFDS_HOME.expanduser() / match[1] / match[2])
    if "://" in where or os.path.isabs(where):
        return place(where, "data.sources")
    embedded = data.corpus == "embedded"
    return (epath.Path(EMBEDDED) if embedded else place(data.corpus, "data.corpus")) / where


def _in_directory(directory: epath.Path, source: str, split: str) -> list[epath.Path]:
    if (directory / "features.json").exists():  # TFDS
        found = _matches(directory / f"*-{split}.*-of-*")
    elif (directory / "dataset_dict.json").exists():  # save_to_disk of a DatasetDict
        splits = _read(directory / "dataset_dict.json")["splits"]
        found = _saved(directory / split) if split in splits else []
    elif (directory / "state.json").exists():  # save_to_disk of a Dataset
        found = _saved(directory) if split == "train" else []
    else:
        found = _matches(directory / f"{split}*")
    if not found and split == "train":
        raise UserError(
            f"data.corpus: {directory} of source {source!r} has no {split} files; if they have "
            "other names, give a pattern of them in data.sources"
        )
    return found


def _saved(directory: epath.Path) -> list[epath.Path]:
    """Return the files of a saved Dataset; cache-*.arrow beside them are of computations."""
    return [directory / f["filename"] for f in _read(directory / "state.json")["_data_files"]]


def _read(path: epath.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read; {e}") from e


def _some(pattern: epath.Path, source: str, split: str) -> list[epath.Path]:
    wanted = os.fspath(pattern).replace(SPLIT, split)
    found = _matches(epath.Path(wanted))
    if not found:
        advice = f"; without {SPLIT}, some of the documents are held out"
        raise UserError(
            f"data.sources: source {source!r} has no files {wanted}"
            + (advice if split == "validation" else "")
        )
    return found


def _matches(pattern: epath.Path) -> list[epath.Path]:
    text = os.fspath(pattern)
    if in_bucket(text):  # not by epath, which has no **
        found = [f"gs://{path}" for path in fsspec.filesystem("gcs").glob(text)]
    else:
        found = fsspec.filesystem("file").glob(text)
    return [epath.Path(path) for path in sorted(found)]
