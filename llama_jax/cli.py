"""The one door: llama-jax VERB ... A verb's file is imported when the verb is called."""

import argparse
import contextlib
import glob
import importlib
import io
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from llama_jax import __version__
from llama_jax.config import UserError
from llama_jax.process import Terminated, raise_on_signals

# Verb: what it does. Its file is commands/VERB.py.
VERBS = {
    "train": "train, or go on training, an experiment",
    "show": "print what an experiment amounts to, or where a run is and where its time went",
    "plan": "say whether an experiment fits a slice, and its cost",
    "prepare": "make documents of a source's public dumps",
    "quality": "train what Common Crawl's pages are scored with",
    "cache": "tokenize an experiment's corpus into its token store",
    "data": "say which documents a step trains on, and which steps a document is in",
    "tokenizer": "train a tokenizer on an experiment's mixture",
    "evaluate": "held-out loss by source, beside n-gram models of the same text",
    "sample": "continue prompts with a trained or another framework's model",
    "export": "write a model in another framework's format",
    "import": "make a workdir of another framework's model",
    "plot": "draw the loss curves of a run, of several, or of a sweep",
    "doctor": "find what is wrong with the hosts of a pod, before a run does",
    "pod": "book, set up, start, watch and free Cloud TPU slices",
    "sweep": "train the experiments of a file, each once",
    "fit": "fit scaling laws to a table of runs, three ways",
    "budget": "choose the model to train for a demand",
}


INTERNAL_ERROR = 70  # sysexits.h: a fault of this program, not of what it was given


class Parser(argparse.ArgumentParser):
    """A parser that refuses a command line in one line, without pages of usage before it."""

    def error(self, message: str) -> NoReturn:
        print(line(self.prog, f"{message}; see {self.prog} --help"), file=sys.stderr)
        sys.exit(2)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than we use
            stream.reconfigure(errors="replace")
    # Children of libraries, too, import nothing from the current directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    raise_on_signals()
    args, unknown = parser(sys.argv[1:]).parse_known_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it can do without a cache of fonts
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        # JAX tries libtpu, which `plan` needs, where there is no TPU, too. Without these it prints
        # five lines about the metadata of a TPU VM.
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    try:
        for word in sys.argv[1:]:
            if word != word.encode(errors="ignore").decode():
                raise UserError(f"got {word!r}, expected arguments in UTF-8")
        if unknown:
            words = " ".join(unknown)
            raise UserError(f"unrecognized arguments: {words}; see llama-jax {args.verb} --help")
        status, text = args.run(args), None
    except UserError as e:
        status, text = 2, str(e)
    except KeyboardInterrupt:
        status, text = 128 + signal.SIGINT, "interrupted"
    except Terminated as e:
        status, text = 128 + e.signal, f"ended by {e.signal.name}"
    except BrokenPipeError:  # whoever reads, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or its flush fails at exit
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:  # a disk that fills up, a share that goes away
        status, text = 1, str(e)
    except Exception as e:
        if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in str(e):
            status, text = 1, f"not enough memory: {str(e).partition(chr(10))[0] or 'of the host'}"
        else:
            status, text = INTERNAL_ERROR, internal_error(e)
    with contextlib.suppress(OSError):  # of a terminal that is gone; the status tells
        if text is not None:
            print(line(f"llama-jax {args.verb}", text), file=sys.stderr, flush=True)
    if status > 128:  # at once: XLA, which may still compile in a thread, crashes in a slow exit
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def line(who: str, text: str) -> str:
    """Return a message as one line, whatever a file or an argument that it names has in it."""
    words = " ".join(text.splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return f"{who}: {shown}"


def internal_error(error: Exception) -> str:
    """Keep the traceback in a file, and return what to say of an error that nobody foresaw."""
    pages = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="llama-jax-", suffix=".txt", errors="replace", delete=False
        ) as file:
            file.write(pages)
        where = file.name
    except OSError:
        print(pages, file=sys.stderr)
        where = "the lines above"
    return (
        f"internal error, which is a fault of llama_jax and not yours: {type(error).__name__}: "
        f"{error}; please report it with the traceback in {where}"
    )


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line, with the options of the verb that `words` call."""
    p = Parser(prog="llama-jax", description="Train LLaMA from public data.")
    p.add_argument("--version", action="version", version=f"llama-jax {__version__}")
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB")
    called = next((word for word in words if not word.startswith("-")), None)
    for verb, does in VERBS.items():
        v = verbs.add_parser(verb, help=does, description=does)
        if verb == called:
            name = "import_" if verb == "import" else verb  # the one that Python has taken
            command = importlib.import_module(f"llama_jax.commands.{name}")
            command.arguments(v)
            v.set_defaults(run=command.run)
    return p
