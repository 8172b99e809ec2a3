"""tokenizer: trained on an experiment's mixture."""

import argparse

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.loading import load
from llama_jax.place import place
from llama_jax.run.workdir import write_whole


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--vocab-size",
        type=options.number(int, 1),
        required=True,
        help="pieces, the 256 bytes included",
    )
    parser.add_argument(
        "--max-mb",
        type=options.number(float, 0.1),
        default=20.0,
        help="text to train on (default: 20 MB)",
    )
    parser.add_argument("--out", required=True, help="the model file to write")


def run(args: argparse.Namespace) -> int:
    from llama_jax.data.tokenizer_training import train

    size = (
        f"model.vocab_size={args.vocab_size}"  # the tokenizer that would give it is not there yet
    )
    out = place(args.out, "--out")
    data = load(args.experiment, [*args.overrides, size]).data
    model = train(data, args.vocab_size, round(args.max_mb * 1e6))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, model)
    except OSError as e:
        raise UserError(f"--out: cannot write {args.out!r}: {e.strerror or e}") from e
    print(f"wrote {args.out}")
    return 0
