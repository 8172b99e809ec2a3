"""cache: an experiment's corpus as tokens, in its store."""

import argparse

from llama_jax.commands import options
from llama_jax.loading import load


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--workers", type=options.number(int, 1), default=1, help="processes (default: 1)"
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.data.cache import cache
    from llama_jax.data.noise import without_noise

    data = load(args.experiment, args.overrides).data
    with without_noise():
        cache(data, args.workers)
    return 0
