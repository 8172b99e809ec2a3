"""export: a model in another framework's format."""

import argparse
import sys
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    options.workdir(parser)
    parser.add_argument("--to", required=True, choices=("hf", "meta", "gguf", "litgpt"))
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--type",
        default="bf16",
        choices=("f32", "bf16", "f16", "q8_0", "q4_0"),
        help="of the numbers; the last two are of gguf (default: bf16)",
    )
    parser.add_argument(
        "--shard-size",
        type=options.number(float, 1e-6),
        metavar="GB",
        help="of hf: a file's size at the most, or one tensor (default: 5)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        choices=(1, 2, 4, 8),
        help="of meta: files to split each matrix over (default: 1)",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare the files' logits with the checkpoint's",
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.formats import exporter
    from llama_jax.formats.weights import Checkpoint
    from llama_jax.run.checkpoint import open_run

    options = (("--shard-size", args.shard_size, "hf"), ("--shards", args.shards, "meta"))
    for option, value, to in options:
        if value is not None and args.to != to:
            raise UserError(f"{option} belongs to --to {to}; got --to {args.to}")
    workdir, step, experiment = open_run(args.workdir, args.overrides)
    try:
        manifest = exporter.export(
            Checkpoint(workdir, step, experiment),
            args.out,
            args.to,
            args.type,
            shard_bytes=round((args.shard_size or 5.0) * 1e9),
            shards=args.shards or 1,
            verify=not args.no_verify,
        )
    except exporter.WrongExport as e:
        print(f"llama-jax export: {e}", file=sys.stderr)
        return 1
    print("\n".join(exporter.summary(args.out, manifest)))
    return 0
