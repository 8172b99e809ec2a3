"""sample: what a trained model writes after a prompt."""

import argparse
import sys

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
        type=options.local_path,
        help="instead of a run, what import takes",
    )
    parser.add_argument(
        "--tokenizer", type=options.local_path, help="of --from, where none comes with it"
    )
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
    if args.source is None and args.tokenizer:
        raise UserError("--tokenizer belongs to --from; for a run, --set data.tokenizer=PATH")
    import jax

    from llama_jax.evaluation.decoder_perplexity import held_out_rows, perplexity
    from llama_jax.generation.completion import complete, print_jsonl, print_text
    from llama_jax.generation.decoder import to_decode_layout
    from llama_jax.generation.sampling import Sampling
    from llama_jax.opened import open_foreign, open_trained

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    model = (
        open_foreign(args.source, args.overrides, args.tokenizer)
        if args.source
        else open_trained(args.workdir, args.overrides)
    )
    with jax.set_mesh(model.mesh):
        seen = model.experiment.data.seq_len
        longest = max(map(len, map(model.encode, args.prompt))) + args.max_tokens
        if longest > seen:
            text = f"up to {longest:,} tokens a text; this model learned from {seen:,}"
            print(f"llama-jax sample: {text}", file=sys.stderr)
        decoder, vocabulary = to_decode_layout(model.params), model.vocabulary
        if args.int8:
            rows = held_out_rows(vocabulary)
            before = perplexity(decoder, rows)
            del decoder
            decoder = to_decode_layout(model.params, int8=True)
            after = perplexity(decoder, rows)
            print(
                f"int8: perplexity {before:.3f} -> {after:.3f} ({after / before - 1:+.2%}) on "
                f"{rows.size:,} tokens of the package's held-out text",
                file=sys.stderr,
            )
        del model  # its matrices lie in the decoder once more
        printer = print_jsonl if args.format == "jsonl" else print_text
        printer(complete(decoder, vocabulary, args.prompt, args.max_tokens, sampling, args.stop))
    return 0


def some_text(given: str) -> str:
    """Parse a text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("got no text, expected a character at the least")
    return given
