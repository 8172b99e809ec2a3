"""Training of what pages of Common Crawl are scored with, on prepared documents.

CCNet's model of the language of Wikipedia, and the paper's classifier of pages that it cites.
"""

# pyright: reportMissingImports=false

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from llama_jax.config import UserError
from llama_jax.data import documents
from llama_jax.data.sources import ccnet, commoncrawl

# CCNet's Makefile.
VOCAB_SIZE = 65_536  # pieces, or fewer where the text has no more
CHARACTER_COVERAGE = 0.9995
ORDER = 5  # of the n-grams
# RedPajama's create_corpus.py: shorter references are left out.
SHORTEST_REFERENCE = 1_000  # characters
HELD_OUT = 20  # one page in so many
# fastText initialises a tenth of the weights a thread, and leaves the others as they are in memory.
# Its threads race: no two trainings give quite the same model.
THREADS = 10


def texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a prepared source. Raises UserError if there are none."""
    files = sorted(folder.glob("train*.jsonl*"))
    if not files:
        raise UserError(f"{folder}: no train*.jsonl.gz, such as `llama-jax prepare` writes, in it")
    for file in files:
        part = documents.Part((epath.Path(file),), "text", "train", None)
        yield from (document.text for document in documents.read(part))


def train_language_model(folder: Path, out: Path) -> None:
    """Write en.sp.model and en.arpa.bin, of the texts of a prepared Wikipedia, into `out`.

    Raises UserError if KenLM's programs are not there, or fail.
    """
    import sentencepiece

    programs = {name: shutil.which(name) for name in ("lmplz", "build_binary")}
    if missing := [name for name, path in programs.items() if path is None]:
        raise UserError(
            f"{missing[0]} is not on the PATH: KenLM's programs train the model, which the package "
            "kenlm does not bring; compile them from https://github.com/kpu/kenlm, or take CCNet's "
            "en.sp.model and en.arpa.bin"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        prefix = f"{scratch}/en.sp"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(ccnet.plain, texts(folder)),
            model_prefix=prefix,
            model_type="unigram",
            vocab_size=VOCAB_SIZE,
            hard_vocab_limit=False,
            character_coverage=CHARACTER_COVERAGE,
            minloglevel=1,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
        with open(f"{scratch}/pieces", "w", encoding="utf-8") as file:
            for text in texts(folder):
                print(*pieces.encode(ccnet.plain(text), out_type=str), file=file)
        order = ("-o", str(ORDER), "--discount_fallback", "-T", scratch)
        _call(str(programs["lmplz"]), *order, "--text", "pieces", "--arpa", "en.arpa", cwd=scratch)
        _call(str(programs["build_binary"]), "en.arpa", "en.arpa.bin", cwd=scratch)
        for name in ("en.sp.model", "en.arpa.bin"):
            os.replace(f"{scratch}/{name}", out / name)


def find_cutoffs(folder: Path, out: Path) -> tuple[int, tuple[float, float]]:
    """Write cutoff.csv, the percentiles of the perplexity of a prepared sample of pages to the
    language model in `out`.

    Returns the number of pages, and the perplexities that end the head and the middle.
    """
    pieces = commoncrawl.sentencepiece_model(out / "en.sp.model")
    model = commoncrawl.kenlm_model(out / "en.arpa.bin")
    found = [ccnet.perplexity(text, pieces, model) for text in texts(folder)]
    part = out / "cutoff.csv.part"
    commoncrawl.write_cutoffs(part, found, commoncrawl.LANGUAGE)
    os.replace(part, out / "cutoff.csv")
    return len(found), commoncrawl.read_cutoffs(out / "cutoff.csv", commoncrawl.LANGUAGE)


def _call(*command: str, cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{command[0]} ended with status {done.returncode}: {last}")


def train_classifier(references: Path, pages: Path, out: Path) -> tuple[float, int]:
    """Write reference.bin, a linear fastText model of pages that Wikipedia cites against as many
    others, into `out`.

    Returns the share of held-out pages that it tells apart, and their number.
    """
    import fasttext

    cited = [text for text in texts(references) if len(text) >= SHORTEST_REFERENCE]
    # By hash: a sample, and an order, that is the same wherever it is made.
    others = sorted(texts(pages), key=_digest)[: len(cited)]
    labelled = [("__label__wiki", text) for text in cited]
    labelled += [("__label__cc", text) for text in others]
    labelled.sort(key=lambda page: _digest(page[1]))
    held_out, train = labelled[::HELD_OUT], [p for i, p in enumerate(labelled) if i % HELD_OUT]
    if len({label for label, _ in train}) < 2:
        raise UserError(
            f"{references} has {len(cited)} texts of {SHORTEST_REFERENCE} characters, and {pages} "
            f"{len(others)} texts; a classifier needs some of both"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        with open(f"{scratch}/pages", "w", encoding="utf-8") as file:
            file.writelines(f"{label} {' '.join(text.split())}\n" for label, text in train)
        model = fasttext.train_supervised(f"{scratch}/pages", thread=THREADS, verbose=0)
        model.save_model(f"{scratch}/reference.bin")
        os.replace(f"{scratch}/reference.bin", out / "reference.bin")
    right = sum(model.predict(" ".join(text.split()))[0][0] == label for label, text in held_out)
    return right / len(held_out), len(held_out)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
