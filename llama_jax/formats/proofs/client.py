"""The program that a format is for, where it is installed, and what it computes from the files.

It runs as a child, in the environment of its own Python; request and reply are files.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("client_script.py")


class Failed(Exception):
    """A program that did not come to its end."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a program made of files, prompts and texts."""

    logits_BTV: np.ndarray
    ids: list[list[int]]  # of each text
    decoded: list[str]  # of each text's tokens; empty if the program does not say


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
