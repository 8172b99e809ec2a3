"""The program that a format is for, where it is installed, and what it computes from the files.

It runs as a child, in the environment of its own Python; request and reply are files.
"""

import dataclasses
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama_jax.config import UserError
from llama_jax.formats.proofs import compare
from llama_jax.formats.proofs.compare import Figures
from llama_jax.formats.weights import Weights

SCRIPT = Path(__file__).with_name("client_script.py")


class Failed(Exception):
    """A program that did not come to its end."""


@dataclasses.dataclass(frozen=True)
class Client:
    """A program that is installed."""

    package: str
    version: str
    python: str  # the one that imports it


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a program made of files, prompts and texts."""

    logits_BTV: np.ndarray
    ids: list[list[int]]  # of each text
    decoded: list[str]  # of each text's tokens; empty if the program does not say


def find(packages: tuple[str, ...], python: str) -> Client:
    """Return the program, having imported it once. Raise UserError if that cannot be done.

    packages: what there is to install, the program first.
    """
    package, install = packages[0], " ".join(packages)
    try:
        version = run(python, package)
    except OSError as e:
        raise UserError(
            f"--client: cannot run {python!r}: {e.strerror}; expected the Python that has {package}"
        ) from e
    except Failed as e:
        raise UserError(
            f"--client: {python} cannot import {package}: {e}; install it there with pip install "
            f"{install}, or give the Python that has it: --client PYTHON"
        ) from e
    if not re.fullmatch(r"[\w.+!-]+", version):
        raise UserError(f"--client: {python} is no Python; expected the one that has {package}")
    return Client(package, version, python)


def ask(
    client: Client,
    source: Weights,
    directory: Path,
    tokens_BT: np.ndarray,
    texts: list[str],
    reference: np.ndarray,
    limits: Callable[[Figures], dict[str, float]],
) -> dict:
    """Return what the manifest says of the files in a program: "causes" to refuse them, if any.

    reference: logits of the tokens, and limits: the most that figures of their difference may be.
    """
    said = {"name": client.package, "version": client.version}
    ours, longest = source.vocabulary, source.seq_len
    texts = [text for text in texts if "<s>" not in text]  # to some a text, to others a token
    prompts, expected = tokens_BT[:, :longest], reference[:, :longest]
    try:
        reply = compute(client, directory, prompts, texts, bool(ours.before))
    except Failed as e:
        return said | {"causes": [f"of {client.python}: {e}"]}
    ids = [[*ours.before, *ours.encode(text)] for text in texts]
    back = [ours.decode(ours.encode(text)) for text in texts] if reply.decoded else []
    causes = []
    for what, got, right in (("tokens", reply.ids, ids), ("decoded tokens", reply.decoded, back)):
        if wrong := [t for t, a, b in zip(texts, got, right, strict=False) if a != b]:
            more = f", and of {len(wrong) - 1} more texts" * (len(wrong) > 1)
            causes.append(f"the {what} of {wrong[0]!r} are others{more}")
    if reply.logits_BTV.shape != expected.shape:
        causes.append(f"logits are of shape {reply.logits_BTV.shape}, not {expected.shape}")
        return said | {"causes": causes}
    figures = compare.compare(reply.logits_BTV, expected)
    most = limits(figures)
    if any((value := figures[name]) is None or value > limit for name, limit in most.items()):
        causes.append(f"{compare.describe(figures)} ({compare.accepted(most)})")
    return said | {"logits": figures, "limits": most, "texts": len(texts), "causes": causes}


def compute(
    client: Client, directory: Path, tokens_BT: np.ndarray, texts: list[str], bos: bool
) -> Reply:
    """Return what the program makes of exported files. Raise Failed.

    bos: whether it comes before a text.
    """
    with tempfile.TemporaryDirectory(prefix="llama-jax-") as name:
        write_request(Path(name), directory, tokens_BT, texts, bos)
        run(client.python, client.package, name)
        return read_reply(Path(name))


def write_request(
    place: Path, directory: Path, tokens_BT: np.ndarray, texts: list[str], bos: bool
) -> None:
    np.save(place / "tokens.npy", tokens_BT)
    request = {"files": str(directory.resolve()), "texts": texts, "bos": bos}
    (place / "request.json").write_text(json.dumps(request))


def read_reply(place: Path) -> Reply:
    return Reply(np.load(place / "logits.npy"), **json.loads((place / "reply.json").read_text()))


def run(python: str, package: str, *places: Path | str) -> str:
    """Have a program answer the requests in some directories; return its version, printed last.

    Raise Failed with its last words, and OSError for a Python that is not there.
    """
    # -P: beside the script lies a litgpt.py, which is not litgpt.
    command = [python, "-P", str(SCRIPT), str(os.getpid()), package, *map(str, places)]
    of_ours = ("PYTHONPATH", "PYTHONHOME")  # where its packages are not
    env = {name: value for name, value in os.environ.items() if name not in of_ours}
    env |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # a GPU would round to TF32
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = words[-1][:300] if words else "it says nothing"
    if done.returncode < 0:
        raise Failed(f"ended on signal {-done.returncode}, as for want of memory: {last}")
    if done.returncode:
        raise Failed(last)
    return "".join(done.stdout.splitlines()[-1:])
