"""tokenizer: trained on an experiment's mixture."""

import argparse
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.experiment import load


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
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")


def run(args: argparse.Namespace) -> int:
    from etils import epath

    from llama_jax.data import tokenizer as room
    from llama_jax.run.workdir import write_whole

    data = load(args.experiment, args.overrides).data
    model = room.train(data, args.vocab_size, round(args.max_mb * 1e6))
    out = epath.Path(args.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, model)
    except OSError as e:
        raise UserError(f"--out: cannot write {str(args.out)!r}: {e.strerror or e}") from e
    print(f"wrote {args.out}")
    return 0
