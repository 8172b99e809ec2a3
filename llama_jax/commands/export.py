"""export: a run, or another framework's model, in a format."""

import argparse
import sys
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.formats import convert, native


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="WORKDIR[@STEP]|SOURCE",
        help="a run, its newest checkpoint unless @STEP; or what import takes",
    )
    options.overrides(parser)
    parser.add_argument("--to", required=True, choices=tuple(convert.export_formats()))
    parser.add_argument(
        "--out", type=options.local_path, required=True, help="the directory to write"
    )
    parser.add_argument(
        "--type",
        default="bf16",
        choices=convert.export_dtypes(),
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
        help="do not compare the files' logits with the source's",
    )
    parser.add_argument(
        "--client",
        nargs="?",
        const=sys.executable,
        metavar="PYTHON",
        help="compute the same in transformers, llama.cpp or litgpt, too, as installed for PYTHON "
        "(default: the one that runs this)",
    )
    parser.add_argument(
        "--tokenizer", type=options.local_path, help="of SOURCE, where none comes with it"
    )


def run(args: argparse.Namespace) -> int:
    shard_bytes = None if args.shard_size is None else round(args.shard_size * 1e9)
    given = {}
    for flag, option, value in (
        ("--shard-size", "shard_bytes", shard_bytes),
        ("--shards", "shards", args.shards),
    ):
        if value is not None:
            convert.check_option(args.to, option, flag)
            given[option] = value
    try:
        verify = not args.no_verify
        manifest = convert.convert(
            _open(args), args.to, args.out, args.type, given, verify, args.client
        )
    except convert.WrongExport as e:
        print(f"llama-jax export: {e}", file=sys.stderr)
        return 1
    print("\n".join(convert.summary(args.out, manifest)))
    return 0


def _open(args: argparse.Namespace):
    """Return the model that is to be exported, as Weights."""
    if convert.format_of(Path(args.source)) in (None, "native"):
        if args.tokenizer:
            raise UserError("--tokenizer belongs to SOURCE; for a run, --set data.tokenizer=PATH")
        return native.read_step(*native.open_run(args.source, args.overrides))
    if args.overrides:
        raise UserError("--set belongs to WORKDIR; got a model of another framework")
    return convert.open_source(Path(args.source), args.tokenizer)
