"""import: another framework's model as a workdir."""

import argparse
import sys
from pathlib import Path

from llama_jax.commands import options


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=options.local_path,
        help="a directory of Hugging Face's or Meta's, a .gguf or its directory, a llama2.c .bin",
    )
    parser.add_argument(
        "--out", type=options.local_path, required=True, metavar="WORKDIR", help="the run to write"
    )
    parser.add_argument(
        "--tokenizer",
        type=options.local_path,
        help="a tokenizer.model or tokenizer.json, in place of the one that comes with it",
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.formats.convert import import_model

    experiment = import_model(args.source, args.out, args.tokenizer)
    if Path(experiment.data.tokenizer).exists():
        print(f"wrote {args.out}; llama-jax sample {args.out} --prompt TEXT")
        return 0
    print(f"wrote {args.out}")
    print(
        "no tokenizer came with it, and without one it cannot be sampled: put the model's "
        f"tokenizer.model at {experiment.data.tokenizer}, or import again with --tokenizer",
        file=sys.stderr,
    )
    return 0
