"""cache: an experiment's corpus as tokens, in its store."""

import argparse
import re

from llama_jax.commands import options
from llama_jax.loading import load


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--workers", type=options.number(int, 1), default=1, help="processes (default: 1)"
    )
    parser.add_argument(
        "--shard",
        type=machine,
        default=(0, 1),
        metavar="I/N",
        help="of N machines this is number I, from 0: it makes every Nth shard of the mixture "
        "from the Ith on (default: 0/1)",
    )


def machine(text: str) -> tuple[int, int]:
    """Parse I/N. argparse names the option when it is refused."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected I/N with I from 0 to N - 1: machines count from 0"
        )
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> int:
    from llama_jax.data.cache import cache
    from llama_jax.data.noise import without_noise

    data = load(args.experiment, args.overrides).data
    with without_noise():
        cache(data, args.workers, args.shard)
    return 0
