"""quality: train what `prepare commoncrawl` scores pages with, on prepared documents."""

import argparse

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    does = "SentencePiece and KenLM models of a prepared Wikipedia, as CCNet's"
    model = kinds.add_parser("language-model", help=does, description=does)
    model.add_argument("--input", required=True, type=options.local_path, metavar="DIR")
    does = "the cut-offs of a language model's perplexity, by a prepared sample of pages"
    cutoffs = kinds.add_parser("cutoffs", help=does, description=does)
    cutoffs.add_argument("--input", required=True, type=options.local_path, metavar="DIR")
    does = "a linear fastText classifier of pages that Wikipedia cites against others"
    classifier = kinds.add_parser("classifier", help=does, description=does)
    classifier.add_argument("--references", required=True, type=options.local_path, metavar="DIR")
    classifier.add_argument("--pages", required=True, type=options.local_path, metavar="DIR")
    for kind in (model, cutoffs, classifier):
        kind.add_argument(
            "--models",
            required=True,
            type=options.local_path,
            metavar="DIR",
            help="where they are written",
        )


def run(args: argparse.Namespace) -> int:
    from llama_jax.data.sources import quality

    try:
        if args.kind == "language-model":
            quality.train_language_model(args.input, args.models)
            print(f"wrote {args.models}/en.sp.model and en.arpa.bin")
        elif args.kind == "cutoffs":
            number, (head, middle) = quality.find_cutoffs(args.input, args.models)
            print(
                f"wrote {args.models}/cutoff.csv: of {number} pages 30% are below {head}, which "
                f"are the head, and 60% below {middle}, which ends the middle"
            )
        else:
            right, number = quality.train_classifier(args.references, args.pages, args.models)
            print(
                f"wrote {args.models}/reference.bin: of {number} held-out pages {right:.1%} right"
            )
    except ModuleNotFoundError as e:
        raise UserError(
            f"needs {e.name}, which is in an environment of its own: run `make prepare` and call "
            ".venv-prepare/bin/llama-jax"
        ) from e
    return 0
