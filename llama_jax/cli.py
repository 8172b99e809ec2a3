"""The one door: llama-jax VERB ... A verb's file is imported when the verb is called."""

import argparse
import glob
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from llama_jax.config import UserError

# Verb: what it does. Its file is commands/VERB.py.
VERBS = {
    "train": "train, or go on training, an experiment",
    "show": "print what an experiment amounts to",
    "plan": "say whether an experiment fits a slice, and its cost",
    "prepare": "tokenize an experiment's corpus into its token store",
    "tokenizer": "train a tokenizer on an experiment's mixture",
    "evaluate": "held-out loss by source, beside n-gram models of the same text",
    "sample": "continue prompts with a trained or another framework's model",
    "export": "write a model in another framework's format",
    "import": "make a workdir of another framework's model",
    "plot": "draw the loss curves of a run into its loss.png",
    "sweep": "train the experiments of a file, each once",
    "fit": "fit scaling laws to a table of runs, three ways",
    "budget": "choose the model to train for a demand",
}


def main() -> None:
    args = parser(sys.argv[1:]).parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        # JAX tries libtpu, which `plan` needs, where there is no TPU, too. Without these it prints
        # five lines about the metadata of a TPU VM.
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    try:
        sys.exit(args.run(args))
    except UserError as e:
        print(f"llama-jax {args.verb}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"llama-jax {args.verb}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or its flush fails at exit
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:  # a disk that fills up, a share that goes away
        print(f"llama-jax {args.verb}: {e}", file=sys.stderr)
        sys.exit(1)


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line, with the options of the verb that `words` call."""
    p = argparse.ArgumentParser(prog="llama-jax", description="Train LLaMA from public data.")
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
