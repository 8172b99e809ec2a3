"""Options that several verbs share, and parsers of an option's value."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path


def experiment(parser: argparse.ArgumentParser) -> None:
    """Add EXPERIMENT and --set."""
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="a file such as experiments/quickstart.py, or the name of one that comes with "
        "llama_jax, such as quickstart",
    )
    overrides(parser)


def workdir(parser: argparse.ArgumentParser) -> None:
    """Add WORKDIR[@STEP] and --set."""
    parser.add_argument(
        "workdir", metavar="WORKDIR[@STEP]", help="a run; its newest checkpoint unless @STEP"
    )
    overrides(parser)


def overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        help="replace a field of the experiment, e.g. model.num_layers=8; may be repeated",
    )


def multihost(parser: argparse.ArgumentParser) -> None:
    """Add --multihost."""
    parser.add_argument(
        "--multihost",
        nargs="?",
        const="auto",
        metavar="ADDRESS:PORT,PROCESSES,INDEX",
        help="first meet the other processes of the job; a TPU pod needs no value",
    )


def local_path(text: str) -> Path:
    """Parse a path that is not in a bucket. argparse names the option when it is refused."""
    if "://" in text or text.startswith("gs:"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a local path")
    return Path(text)


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a parser of an option's value, which argparse names when it refuses it."""
    high = min(high, 2**32 - 1) if kind is int else high

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            accepted = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"got {text}, expected {accepted}")
        return value

    parse.__name__ = kind.__name__
    return parse


def positive(high: float = sys.float_info.max) -> Callable[[str], float]:
    """Return a parser of a number that is finite and above 0."""

    def parse(text: str) -> float:
        value = float(text)
        if not 0 < value <= high:
            limit = f", at most {high}" if high < sys.float_info.max else ""
            raise argparse.ArgumentTypeError(f"got {text}, expected a finite number above 0{limit}")
        return value

    parse.__name__ = "float"
    return parse
