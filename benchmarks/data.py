"""Reading for training beside a memory map, and the tokenizing of `cache` beside its peers.

    python benchmarks/data.py [--rounds 5] [--mb 2] [--seq-len 2048]

All in tokens per CPU-second of the whole process, threads included, so that other work on the
machine disturbs little; what is measured takes turns, and figures are medians over the rounds. The
text is the head of each source of the embedded corpus, the tokens are those of --tokenizer.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
from rich.console import Console
from rich.table import Table

from llama_jax.config import DataConfig
from llama_jax.data import batches, documents, tokenizer
from llama_jax.data.cache import cache
from llama_jax.data.noise import without_noise
from llama_jax.formats import vocabulary

ROWS = 512  # read in a round


def main() -> None:
    parser = argparse.ArgumentParser(description="The data pipeline, beside peers and a limit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=float, default=2.0, help="of text, over all sources")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--tokenizer", default="embedded", help="a SentencePiece model")
    args = parser.parse_args()
    table = Table(title=f"{processor()}, {os.cpu_count()} cores, {args.rounds} rounds")
    for column in ("what", "M tokens per CPU-second", "min", "max", "ratio"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as directory, without_noise():
        data = corpus(Path(directory), args)
        cache(data, num_workers=1)
        for group in (reading(data, Path(directory)), tokenizing(data)):
            add_rows(table, measure(group, args.rounds))
    Console(width=110).print(table)


def processor() -> str:
    """Return the name of this machine's processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def corpus(directory: Path, args: argparse.Namespace) -> DataConfig:
    """Write the head of each source of the embedded corpus; return where."""
    embedded = DataConfig(store="", batch_size=1)
    of_source = args.mb * 1e6 / len(embedded.mixture)
    for source, _ in embedded.mixture:
        (directory / "corpus" / source).mkdir(parents=True)
        for split in ("train", "validation"):
            texts, size = [], 0
            for part in documents.parts(embedded, source, split):
                for text, _ in documents.read(part):
                    if size < of_source:
                        texts.append(text)
                        size += len(text.encode())
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (directory / "corpus" / source / f"{split}.jsonl").write_text(lines)
    return DataConfig(
        corpus=str(directory / "corpus"),
        store=str(directory / "store"),
        tokenizer=args.tokenizer,
        seq_len=args.seq_len,
        batch_size=1,
    )


def reading(data: DataConfig, directory: Path) -> dict[str, Callable[[], int]]:
    """Return what reads the same windows, in the same order: of the store, and of a memory map."""
    rows = batches.TrainRows(data)
    maps = {}
    for windows in rows.windows:
        file = directory / f"{windows.source}.npy"
        np.save(file, windows.tokens.read(0, len(windows.tokens)))
        maps[windows.source] = np.load(file, mmap_mode="r")
    located = [rows.locate(row) for row in range(ROWS)]

    def of_store() -> int:
        return sum(len(rows[row]["tokens"]) for row in range(ROWS))

    def of_map() -> int:
        tokens = 0
        for source, window in located:
            start = window * data.seq_len
            tokens += len(maps[source][start : start + data.seq_len + 1].astype(np.int32)) - 1
        return tokens

    return {"training input, from the store": of_store, "limit: a memory map": of_map}


def tokenizing(data: DataConfig) -> dict[str, Callable[[], int]]:
    """Return what tokenizes the same training text."""
    from llama_jax.data import tasks

    parts = [(s, part) for s, _ in data.mixture for part in documents.parts(data, s, "train")]
    texts = [document.text for _, part in parts for document in documents.read(part)]
    model = tokenizer.read(data.tokenizer)
    encode = tokenizer.sentencepiece_of(model, data.tokenizer).encode
    fast = tokenizers.Tokenizer.from_str(
        json.dumps(vocabulary.hugging_face(vocabulary.parse(model)))
    )

    def ours() -> int:
        return sum(
            len(document.tokens)
            for source, part in parts
            for document in tasks.tokenize(data, source, documents.read_places(part))
        )

    return {
        "cache, its tokenizing": ours,
        "SentencePiece": lambda: sum(len(encode(text)) for text in texts),
        "tokenizers": lambda: sum(len(fast.encode(text).ids) for text in texts),
    }


def measure(group: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return tokens per CPU-second, a figure a round, after one to warm up."""
    measured: dict[str, list[float]] = {name: [] for name in group}
    for _ in range(rounds + 1):
        for name, work in group.items():
            start = time.process_time()
            tokens = work()
            measured[name].append(tokens / (time.process_time() - start))
    return {name: rates[1:] for name, rates in measured.items()}


def add_rows(table: Table, measured: dict[str, list[float]]) -> None:
    """Add a row each, and the first one's ratio to it."""
    first = statistics.median(next(iter(measured.values())))
    for name, rates in measured.items():
        rate = statistics.median(rates)
        figures = (f"{x / 1e6:.2f}" for x in (rate, min(rates), max(rates)))
        table.add_row(name, *figures, f"{first / rate:.2f}")
    table.add_section()


if __name__ == "__main__":
    main()
