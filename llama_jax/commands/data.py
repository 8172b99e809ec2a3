"""data: which documents a step trains on, which steps a document is in, and how often all are."""

import argparse
import typing
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import Experiment, UserError
from llama_jax.experiment import validate
from llama_jax.loading import load, override
from llama_jax.place import place

if typing.TYPE_CHECKING:
    from llama_jax.data.ledger import Document, Ledger
    from llama_jax.data.schedule import Schedule

# Epochs at 1.4T tokens, Table 1 of the paper.
PAPER_EPOCHS = {
    **{"commoncrawl": 1.10, "c4": 1.06, "github": 0.64, "wikipedia": 2.45},
    **{"books": 2.23, "arxiv": 1.06, "stackexchange": 1.03},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="EXPERIMENT|WORKDIR",
        help="an experiment, as for the other verbs; or a run, with the batches it left out",
    )
    options.overrides(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--step",
        type=options.number(int, 0),
        metavar="N",
        help="the documents of the batch that the update after N others is computed from",
    )
    asked.add_argument(
        "--find", metavar="TEXT|ID", help="the steps that see a document, by id, FILE:ROW or text"
    )
    asked.add_argument(
        "--stats", action="store_true", help="tokens, documents and epochs of each source"
    )
    parser.add_argument(
        "--show",
        type=options.number(int, 0),
        default=100,
        metavar="CHARS",
        help="of each text, 0: all (default: 100)",
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.data import store
    from llama_jax.data.ledger import Ledger
    from llama_jax.data.schedule import Schedule
    from llama_jax.run.checkpoint import newest_meta

    schedule = Schedule()
    if args.what.startswith("gs:") or Path(args.what).is_dir():
        workdir = place(args.what, "workdir")
        meta = newest_meta(workdir)
        if meta is None:
            raise UserError(
                f"workdir: {workdir} has no checkpoint that can be read, which says what it trains "
                "on; give a run of llama-jax train that has one, or its experiment"
            )
        experiment, schedule = meta.experiment, meta.schedule
        for change in args.overrides:
            experiment = override(experiment, change)
        validate(experiment)
        if store.digest(experiment.data) != meta.origin.data_digest:
            raise UserError(
                f"data.store: {experiment.data.store} is not the one that {workdir} was trained "
                "on; say where that is with --set data.store=DIRECTORY"
            )
    else:
        experiment = load(args.what, args.overrides)
    store.check_tokenizer(experiment.data, experiment.model.vocab_size)
    ledger = Ledger(experiment.data)
    if args.stats:
        print_stats(ledger, schedule, experiment)
    elif args.find is not None:
        print_steps(ledger, schedule, experiment, args.find)
    else:
        print_batch(ledger, schedule.batch(args.step), args.step, args.show)
    return 0


def print_batch(ledger: "Ledger", number: int, step: int, show: int) -> None:
    """Print a line about each document of a batch, with its text; all of it if show is 0."""
    print(f"batch {number}, of the update after {step:,} others: step {step + 1:,} of the log")
    for shown in ledger.batch(number):
        document, size = shown.document, shown.stop - shown.start
        begin = shown.start - document.start
        name = _name(document)
        text = shown.text[:show] + "..." if 0 < show < len(shown.text) else shown.text
        print(
            f"row {shown.row}: {shown.source} epoch {shown.epoch} {name} tokens "
            f"{begin}..{begin + size} of {document.stop - document.start}: {text!r}"
        )


def print_steps(
    ledger: "Ledger", schedule: "Schedule", experiment: Experiment, wanted: str
) -> None:
    """Print at which steps each document that is meant is seen. Raise UserError if none is."""
    found = False
    for source, document in ledger.find(wanted):
        found = True
        steps = ledger.steps(source, document, schedule, experiment.run.num_steps)
        name = _name(document)
        when = f"steps {', '.join(map(str, steps))}" if steps else "no step"
        print(f"{source} {name}: {when} of {experiment.run.num_steps:,}", flush=True)
    if not found:
        raise UserError(f"--find: got {wanted!r}, which no document has as its id or in its text")


def print_stats(ledger: "Ledger", schedule: "Schedule", experiment: Experiment) -> None:
    """Print the store and its epochs as Table 1 of the paper does, and what is repeated more."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{experiment.run.num_steps:,} steps", title_justify="left")
    for heading in ("source", "proportion", "epochs", "paper", "documents", "tokens", "size"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    warnings = []
    for index, (source, rate) in enumerate(experiment.data.mixture):
        tokens = ledger.documents[source].tokens
        epochs = ledger.epochs(index, schedule, experiment.run.num_steps)
        papers = PAPER_EPOCHS.get(source)
        size = sum(array.size * array.dtype.numpy_dtype.itemsize for array in tokens.arrays)
        num_documents = sum(shard.num_documents for shard in tokens.index.shards)
        shown = (f"{rate:.1%}", f"{epochs:.2f}", f"{papers:.2f}" if papers else "-")
        table.add_row(
            source, *shown, f"{num_documents:,}", f"{len(tokens):,}", f"{size / 1e6:,.1f} MB"
        )
        if papers and epochs > max(papers, 1):
            warnings.append(
                f"warning: {source} is seen {epochs:.2f} times; the paper's, {papers:.2f}"
            )
    Console(markup=False).print(table)
    for line in warnings:
        print(line)


def _name(document: "Document") -> str:
    return document.place + (f" id {document.id}" if document.id != document.place else "")
