"""sample: what a trained model writes after a prompt."""

import argparse
import sys
import tempfile
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    options.overrides(parser)
    parser.add_argument(
        "workdir",
        metavar="WORKDIR[@STEP]",
        nargs="?",
        help="a run; its newest checkpoint unless @STEP",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        type=Path,
        help="instead of a run, what import takes, through a temporary directory",
    )
    parser.add_argument("--tokenizer", type=Path, help="of --from, where none comes with it")
    parser.add_argument(
        "--prompt", action="append", required=True, help="text to continue; may be repeated"
    )
    parser.add_argument(
        "--max-tokens",
        type=options.number(int, 1),
        default=100,
        help="tokens to add (default: 100)",
    )
    parser.add_argument(
        "--temperature",
        type=options.number(float, 0),
        default=0.8,
        help="0 takes the likeliest (default: 0.8)",
    )
    parser.add_argument(
        "--top-p", type=options.number(float, 0, 1), default=0.95, help="nucleus (default: 0.95)"
    )
    parser.add_argument(
        "--top-k", type=options.number(int, 1), help="draw from the likeliest (default: all)"
    )
    parser.add_argument(
        "--seed", type=options.number(int, 0, 2**32 - 1), default=0, help="of the draw (default: 0)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=some_text,
        help="end a continuation before this text; may be repeated",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="hold the matrices in eight bits, and say what it costs in perplexity",
    )
    parser.add_argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="text as it comes, or one JSON object a prompt (default: text)",
    )


def run(args: argparse.Namespace) -> int:
    if (args.workdir is None) == (args.source is None):
        raise UserError("expected either WORKDIR or --from SOURCE")
    if args.source is None:
        if args.tokenizer:
            raise UserError("--tokenizer belongs to --from; for a run, --set data.tokenizer=PATH")
        return _sample_run(args)
    from llama_jax.formats.convert import import_model

    with tempfile.TemporaryDirectory() as directory:
        args.workdir = f"{directory}/imported"
        experiment = import_model(args.source, Path(args.workdir), args.tokenizer)
        if not Path(experiment.data.tokenizer).exists():
            raise UserError(f"--from {args.source}: comes without a tokenizer; give --tokenizer")
        return _sample_run(args)


def _sample_run(args: argparse.Namespace) -> int:
    import jax

    from llama_jax.data import tokenizer as room
    from llama_jax.evaluation.decoder_perplexity import held_out_rows, perplexity
    from llama_jax.formats.vocabulary import check_size
    from llama_jax.generation.completion import complete, print_jsonl, print_text
    from llama_jax.generation.decoder import mesh_for, to_decode_layout
    from llama_jax.generation.sampling import Sampling
    from llama_jax.run.checkpoint import open_run, restore_model
    from llama_jax.sharding import make_mesh

    workdir, step, experiment = open_run(args.workdir, args.overrides)
    vocabulary = room.load(experiment.data.tokenizer)
    check_size(vocabulary.vocab_size(), experiment.model.vocab_size, experiment.data.tokenizer)
    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    mesh, devices = mesh_for(experiment.model, jax.device_count()), jax.devices()
    if any(text.startswith("execution.mesh.") for text in args.overrides):
        mesh = experiment.execution.mesh
    else:
        devices = devices[: mesh.fsdp * mesh.tensor]
    with jax.set_mesh(make_mesh(mesh, devices)):
        model = restore_model(workdir, step, experiment)
        seen = experiment.data.seq_len
        longest = max(map(len, vocabulary.encode(args.prompt))) + 1 + args.max_tokens
        if longest > seen:
            text = f"up to {longest:,} tokens a text; this model learned from {seen:,}"
            print(f"llama-jax sample: {text}", file=sys.stderr)
        decoder = to_decode_layout(model)
        if args.int8:
            rows = held_out_rows(vocabulary)
            before = perplexity(decoder, rows)
            del decoder
            decoder = to_decode_layout(model, int8=True)
            after = perplexity(decoder, rows)
            print(
                f"int8: perplexity {before:.3f} -> {after:.3f} ({after / before - 1:+.2%}) on "
                f"{rows.size:,} tokens of the package's held-out text",
                file=sys.stderr,
            )
        del model
        printer = print_jsonl if args.format == "jsonl" else print_text
        printer(complete(decoder, vocabulary, args.prompt, args.max_tokens, sampling, args.stop))
    return 0


def some_text(given: str) -> str:
    """Parse a text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("got no text, expected a character at the least")
    return given
