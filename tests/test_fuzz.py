"""Every verb, given what it cannot use: one line says so, no traceback, and nothing is written."""

import argparse
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import EXPERIMENTS
from llama_jax import cli as door
from llama_jax.experiment import fields
from llama_jax.loading import load

CASES = 18  # of each verb and kind; more of them were tried by hand
QUICKSTART = str(EXPERIMENTS / "quickstart.py")
VALUES = (
    *("", " ", "0", "-1", "1", "7", "1.5", "1e999", "1e-320", "nan", "-inf", "None", "true", "1j"),
    *("9" * 400, "9" * 5_000, str(2**31), str(2**64), str(10**12), "0x" + "f" * 5_000, "1_0"),
    *("(" * 5_000, "-" * 5_000 + "1", "{[]: 1}", "[1]", "(1,)", "((1, 2),)", "'x'", "b'x'", "..."),
    *("(('github', 1.0),)", "(('../x', 1.0),)", "(('github', 1e999),)", "(('[red]', 1.0),)"),
    *("a\nb", "\x1b[31m", "\u2028", "\ud800", "[/bold]", "%s", "{}", "\\", "x" * 5_000, "http://["),
    *("/dev/null", ".", "~", "v5e:2x2", "h100:8", "h100:" + "9" * 30, "9" * 30 + "xv5e:2x2"),
)
FILES = {  # what may lie where a text file should
    "empty": b"",
    "garbage": b"\x93\xff\x00\xd8" * 64,
    "nul": b"\0" * 100,
    "utf-16": "get_experiment = 1".encode("utf-16"),
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "json": b'{"schema": 1, "model": {}}',
    "exit": b"import sys; sys.exit(0)",
    "interrupted": b"raise BaseException('a\\nb')",
    "recursion": b"def get_experiment(): return get_experiment()\nget_sweep = get_experiment",
    "other": b"def get_experiment(): return 1\nget_sweep = get_experiment",
    "names": b"def get_sweep(): return {1: 2}",
    "table": b"N,D,loss\n1,2,3\n",
    "strange table": b"N,D,loss\n1e308,1e308,1e308\n1e-308,1e-308,1e-308\n,,\n1,2\n",
    "large table": b"N,D,loss\n" + b"".join(b"%d,1e300,3\n" % 10**n for n in range(1, 300)),
    "one size": b"N,D,loss\n" + b"".join(b"1e6,%d,2\n" % 10**n for n in range(5, 15)),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> list[str]:
    """Paths of files that are none, or not what is expected, and of none at all."""
    directory = tmp_path_factory.mktemp("odd")
    for name, content in FILES.items():
        for ending in (".py", ".csv", ".json"):
            (directory / f"{name}{ending}").write_bytes(content)
    os.mkfifo(directory / "fifo.py")
    (directory / "loop").symlink_to("loop")
    for name in ("config.json", "params.json", "metrics.jsonl", "checkpoints"):
        for kind, content in FILES.items():
            (directory / f"with {kind} {name}").mkdir()
            (directory / f"with {kind} {name}" / name).write_bytes(content)
    for step in ("0", "9" * 30, "x"):
        (directory / f"with step {step}" / "checkpoints" / step).mkdir(parents=True)
    (directory / "with fifo").mkdir()
    os.mkfifo(directory / "with fifo" / "config.json")
    missing = [directory / "missing", directory / ("n" * 300), directory / "[/red]\n"]
    return sorted(
        map(str, [*directory.iterdir(), *missing, "/dev/null", "", ".", "a\udcff", "http://x"])
    )


def usual(verb: str, directory: Path, run: Path) -> list[str]:
    """Return a command line of the verb that ends before much is computed, or anything written.

    run: a workdir with a checkpoint.
    """
    nowhere = ["--set", f"data.corpus={directory}/none", "--set", f"data.store={directory}/none"]
    no_tokenizer = ["--set", f"data.tokenizer={directory}/none"]
    (directory / "file").write_text("")
    return {
        # Refused by the last check before a process is started that writes the store.
        "train": [QUICKSTART, "--set", f"optimizer.warmup_steps={2**31 - 1}", *nowhere],
        "show": [QUICKSTART],
        "plan": [QUICKSTART, "--slice", "h100:8"],
        "prepare": [
            *("c4", "--input", f"{directory}/none", "--output", f"{directory}/out"),
            *("--against", f"{directory}/none"),
        ],
        "quality": [
            *("classifier", "--references", f"{directory}/none", "--pages", f"{directory}/none"),
            *("--models", f"{directory}/out"),
        ],
        "cache": [QUICKSTART, *nowhere],
        "data": [QUICKSTART, "--step", "3", *nowhere],
        "tokenizer": [QUICKSTART, "--vocab-size", "300", "--out", f"{directory}/none/x", *nowhere],
        "evaluate": [str(run), *no_tokenizer],
        "sample": [str(run), "--prompt", "a", *no_tokenizer],
        "export": [str(run), "--to", "hf", "--out", str(directory)],
        "import": [f"{directory}/none", "--out", f"{directory}/out"],
        "plot": [f"{directory}/none"],
        "doctor": [QUICKSTART, *nowhere],
        "pod": [
            *("create", QUICKSTART, "--slice", "v5e:2x2", "--zone", "z", "--project", "p"),
            *("--workdir", "gs://b/r", "--dry-run"),
        ],
        "sweep": [str(EXPERIMENTS / "sweeps/cpu_isoflop.py"), "--dry-run"],
        "fit": [f"{directory}/none", "--bootstraps", "2", "--out", f"{directory}/file/x"],
        "budget": ["--laws", "hoffmann", "--loss", "2.5", "--inference-tokens", "1e12"],
    }[verb]


def hostile(
    verb: str, directory: Path, run: Path, odd: list[str], cases: int
) -> Iterator[list[str]]:
    """Yield wrong command lines of a verb: values of its options and fields, files, and words."""
    rng = random.Random(verb)
    base = usual(verb, directory, run)
    options = _options(verb, base[0])
    names = [name for name, *_ in fields(load(QUICKSTART))]
    writes = (
        "--out",
        "--output",
        "--figure",
        "--workdir",
        "--shard",
        "--jobs",
        "--workers",
        "--multihost",
    )
    for _ in range(cases):
        yield [rng.choice(odd), *base[1:]]
        option = rng.choice(["--frob", *(o for o in options if o not in writes)])
        yield [*base, option, rng.choice((*VALUES, rng.choice(odd)))]
        if "--set" in options:
            yield [*base, "--set", f"{rng.choice(names)}={rng.choice(VALUES)}"]
        yield rng.sample([*base[1:2], *options, *VALUES], k=rng.randint(0, 3))


def _options(verb: str, kind: str) -> list[str]:
    """Return the options of a verb, or of one kind of it, that take a value, as its parser has
    them."""
    (verbs,) = (
        a for a in door.parser([verb])._actions if isinstance(a, argparse._SubParsersAction)
    )
    actions = list(verbs.choices[verb]._actions)
    for action in verbs.choices[verb]._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += action.choices[kind]._actions
    return [a.option_strings[0] for a in actions if a.option_strings and a.nargs != 0]


@pytest.mark.parametrize("verb", door.VERBS)
def test_what_is_wrong_is_said_in_a_line(verb, cli, odd, runs, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for args in hostile(verb, tmp_path, runs / "gqa", odd, CASES):
        done = cli(verb, *args)
        case = (verb, [word[:80] for word in args], done.returncode, done.stderr[-2000:])
        assert done.returncode in (0, 1, 2), case
        assert "Traceback" not in done.stderr + done.stdout, case
        if done.returncode == 2:
            assert re.match(f"llama-jax {verb}( create| classifier)?: ", done.stderr), case
            assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable(), case
        assert not list(here.iterdir()), case
