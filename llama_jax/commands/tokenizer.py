"""tokenizer: trained on an experiment's mixture, or checked."""

import argparse
from pathlib import PurePath

from rich.console import Console
from rich.table import Column, Table

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.loading import load
from llama_jax.place import place
from llama_jax.run.workdir import write_whole

# The tokenizer that would give it may not be there yet, or be one that cannot be loaded.
ANY_SIZE = "model.vocab_size=32000"


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="check data.tokenizer of EXPERIMENT, or a .model or .json given in its place, on the "
        "experiment's or the embedded corpus; status 1 if it fails",
    )
    parser.add_argument(
        "--against", metavar="FILE", help="with --check: compare the length of tokens with its"
    )
    parser.add_argument(
        "--vocab-size",
        type=options.number(int, 1),
        help="train one: pieces, the 256 bytes included",
    )
    parser.add_argument(
        "--max-mb",
        type=options.number(float, 0.1),
        default=20.0,
        help="text to train on (default: 20 MB)",
    )
    parser.add_argument("--out", help="the model file to write")


def run(args: argparse.Namespace) -> int:
    to_train = (args.vocab_size, args.out)
    if args.check and to_train == (None, None):
        return _check(args)
    if args.check or args.against is not None or None in to_train:
        raise UserError(
            "expected either --vocab-size and --out, to train a tokenizer; or --check, perhaps "
            "with --against"
        )
    return _train(args)


def _train(args: argparse.Namespace) -> int:
    from llama_jax.data.tokenizer_training import train

    out = place(args.out, "--out")
    data = load(args.experiment, [*args.overrides, ANY_SIZE]).data
    model = train(data, args.vocab_size, round(args.max_mb * 1e6))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, model)
    except OSError as e:
        raise UserError(f"--out: cannot write {args.out!r}: {e.strerror or e}") from e
    print(f"wrote {args.out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from llama_jax.data import tokenizer
    from llama_jax.formats import acceptance

    given, overrides = args.experiment, [*args.overrides, ANY_SIZE]
    if given.endswith((".model", ".json")):
        given, overrides = "quickstart", [f"data.tokenizer={given}", *overrides]
    data = load(given, overrides).data
    content, where = tokenizer.read(data.tokenizer), f"data.tokenizer: {data.tokenizer}"
    encoders = {data.tokenizer: acceptance.encoder(content, where)}
    if args.against is not None:
        other = tokenizer.read(args.against)
        encoders[args.against] = acceptance.encoder(other, f"--against: {args.against}")
    texts = acceptance.sample(data)
    answers = acceptance.examine(content, where, [t for some in texts.values() for t in some])
    console = Console(markup=False, highlight=False)
    console.print(_answers(answers))
    counts = {
        source: [acceptance.count(encode, some) for encode in encoders.values()]
        for source, some in texts.items()
    }
    console.print(_lengths(list(encoders), counts))
    failed = [answer.asked for answer in answers if answer.holds is False]
    print(f"fails: {'; '.join(failed)}" if failed else "passes")
    return 1 if failed else 0


def _answers(answers: list) -> Table:
    table = Table("asked", "", "found")
    for answer in answers:
        mark = {True: "pass", False: "FAIL", None: "-"}[answer.holds]
        table.add_row(answer.asked, mark, answer.found)
    return table


def _lengths(names: list[str], counts: dict[str, list]) -> Table:
    table = Table(
        Column("source", no_wrap=True), title=" beside ".join(PurePath(name).name for name in names)
    )
    for heading in ("bytes", *("bytes per token", "tokens per word") * len(names)):
        table.add_column(heading, justify="right")
    if len(names) > 1:
        table.add_column("tokens, ratio", justify="right")
    for source, of_source in counts.items():
        cells = [
            cell
            for c in of_source
            for cell in (f"{c.bytes / c.tokens:.3f}", f"{c.tokens / max(c.words, 1):.3f}")
        ]
        beside = [f"{of_source[0].tokens / c.tokens:.2f}" for c in of_source[1:]]
        table.add_row(source, f"{of_source[0].bytes:,}", *cells, *beside)
    return table
