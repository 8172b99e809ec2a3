"""Common Crawl, cleaned as by CCNet (arXiv 1911.00359), and the paper's classifier after it.

Reads WET, the text that Common Crawl has extracted and that CCNet reads, and WARC, the pages
themselves, whose text trafilatura extracts.
"""

# pyright: reportMissingImports=false

import csv
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llama_jax.config import UserError
from llama_jax.data.sources import ccnet
from llama_jax.data.sources.lines import lines, open_binary
from llama_jax.data.sources.source import (
    Bad,
    Document,
    RepeatedParagraphs,
    Rule,
    Source,
    WithModels,
)

SHORTEST = 300  # characters: CCNet's min_len
LANGUAGE = "en"  # the paper drops pages of other languages
SURE_OF_LANGUAGE = 0.5  # CCNet's lang_threshold
# Percentiles of perplexity that end the head and the middle; the tail is dropped.
HEAD, MIDDLE = 30, 60
CUTOFFS = (340.0, 520.0)  # those percentiles of English, of CCNet's own cutoff.csv
LIKE_A_REFERENCE = 0.25  # RedPajama's threshold; the paper has "not classified as references"
PAGES = ("text/html", "application/xhtml+xml")


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the documents of one file of a crawl."""
    return _warc(path) if ".warc.wet" not in path.name and ".warc" in path.name else _wet(path)


def _wet(path: Path) -> Iterator[Document | Bad]:
    """Yield the records of a WET file. Like CCNet it goes by the lines, and not by Content-Length:
    the first line is the title, blank ones are left out."""
    headers: dict[str, str] | None = None  # while they are read
    about, body, number = {}, [], 0
    with open_binary(path) as file:
        for found in lines(file):
            if isinstance(found, Bad):
                yield found
                continue
            number, line = found[0], found[1].strip()
            if line == "WARC/1.0":
                yield from _conversion(about, body)
                headers, about, body = {}, {}, []
            elif headers is None:
                if line:
                    body.append(line)
            elif line:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            else:
                about, headers = headers, None
        yield from _conversion(about, body)
    if not about and headers is None:
        yield Bad(f"line {number}", "the file has no WARC/1.0 record")


def _conversion(about: dict[str, str], body: list[str]) -> Iterator[Document]:
    if about.get("warc-type") != "conversion" or not body:
        return
    yield Document(
        "\n".join(body[1:]),
        id=about.get("warc-record-id", ""),
        url=about.get("warc-target-uri"),
        date=about.get("warc-date"),
        provenance={"title": body[0], "digest": about.get("warc-block-digest")},
    )


def _warc(path: Path) -> Iterator[Document | Bad]:
    """Yield the pages of a WARC file."""
    from trafilatura import bare_extraction
    from warcio.archiveiterator import ArchiveIterator

    num_records = 0
    # Decompressed here: warcio takes a gzip file that is cut for one that has ended.
    with open_binary(path) as file:
        for record in ArchiveIterator(_Whole(file)):
            num_records += 1
            about = record.rec_headers
            content = record.content_stream().read()
            if record.raw_stream.limit > 0:
                raise EOFError(f"record {num_records} is cut")
            if record.rec_type != "response" or not _is_page(record):
                continue
            try:
                page: Any = bare_extraction(
                    content,  # whose charset trafilatura finds
                    url=about.get_header("WARC-Target-URI"),
                    favor_precision=True,
                    include_comments=False,
                    with_metadata=True,
                )
            except Exception as e:  # there is no end to what a page may hold
                yield Bad(f"record {num_records}", f"{type(e).__name__}: {e}")
                continue
            text_lines = map(str.strip, ((page and page.text) or "").split("\n"))
            yield Document(
                "\n".join(filter(None, text_lines)),
                id=about.get_header("WARC-Record-ID"),
                url=about.get_header("WARC-Target-URI"),
                licence=page.license if page else None,
                date=about.get_header("WARC-Date"),
                provenance={"title": page.title if page else None},
            )
    if not num_records:
        yield Bad("the file", "has no WARC record")


class _Whole:
    """A file whose cut end is an error that warcio does not take for the end."""

    def __init__(self, file: IO[bytes]):
        self.file: Any = file

    def read(self, size: int) -> bytes:
        try:
            return self.file.read1(size)  # what there is before the cut, first
        except EOFError as e:
            raise OSError(str(e)) from e


def _is_page(record: Any) -> bool:
    """Return whether a response of HTTP is a page that was there."""
    http = record.http_headers
    if http is None or http.get_statuscode() != "200":
        return False
    identified = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    kind = identified or http.get_header("Content-Type") or ""
    return kind.partition(";")[0].strip().lower() in PAGES


# Rules


def short(document: Document) -> str | None:
    """Drop a document of fewer characters than CCNet takes."""
    return document.text if len(document.text) >= SHORTEST else None


def language(model: Path) -> Rule:
    """Drop a document that fastText does not take for English."""
    fasttext_model(model)  # here, too, so that a damaged one ends it before it starts

    def rule(document: Document) -> str | None:
        labels, scores = fasttext_model(model).predict(document.text.replace("\n", ""))
        found, score = labels[0].removeprefix("__label__"), round(float(scores[0]), 2)
        document.provenance |= {"language": found, "language_score": score}
        return document.text if found == LANGUAGE and score >= SURE_OF_LANGUAGE else None

    return rule


def perplexity(pieces: Path, model: Path, cutoffs: Path | None = None) -> Rule:
    """Drop a document of the tail: text that a model of Wikipedia finds improbable."""
    sentencepiece_model(pieces)
    kenlm_model(model)
    head, middle = CUTOFFS if cutoffs is None else read_cutoffs(cutoffs, LANGUAGE)

    def rule(document: Document) -> str | None:
        found = ccnet.perplexity(document.text, sentencepiece_model(pieces), kenlm_model(model))
        bucket = "head" if found < head else "middle" if found < middle else "tail"
        document.provenance |= {"perplexity": found, "bucket": bucket}
        return document.text if bucket != "tail" else None

    return rule


def read_cutoffs(path: Path, language: str) -> tuple[float, float]:
    """Return the perplexities that end head and middle, of CCNet's cutoff.csv: a row for each
    percentile, a column for each language. Raises UserError for a table without them."""
    try:
        with open(path, newline="") as file:
            rows = {row[""]: row for row in csv.DictReader(file)}
        head, middle = (float(rows[str(percentile)][language]) for percentile in (HEAD, MIDDLE))
    except (KeyError, ValueError, TypeError) as e:
        raise UserError(
            f"{path}: expected a row for each of the percentiles {HEAD} and {MIDDLE}, and a column "
            f"{language}, as CCNet's cutoff.csv has; {type(e).__name__}: {e}"
        ) from e
    return head, middle


def write_cutoffs(path: Path, perplexities: list[float], language: str) -> None:
    """Write such a table, of the perplexities of a sample of pages."""
    import numpy as np

    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", language])
        values = np.percentile(perplexities, range(101))
        table.writerows((percentile, round(float(v), 1)) for percentile, v in enumerate(values))


def reference(model: Path) -> Rule:
    """Drop a page that is unlike those that Wikipedia cites, to a linear classifier."""
    fasttext_model(model)

    def rule(document: Document) -> str | None:
        text = document.text.replace("\n", " ")
        labels, scores = fasttext_model(model).predict(text, k=2)
        score = dict(zip(labels, scores, strict=True)).get("__label__wiki", 0.0)
        document.provenance["reference_score"] = round(float(score), 4)
        return document.text if score >= LIKE_A_REFERENCE else None

    return rule


@functools.cache
def fasttext_model(path: Path) -> Any:
    import fasttext

    return _loaded(fasttext.load_model, path)


@functools.cache
def sentencepiece_model(path: Path) -> Any:
    import sentencepiece

    return _loaded(sentencepiece.SentencePieceProcessor, path)


@functools.cache
def kenlm_model(path: Path) -> Any:
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return _loaded(functools.partial(kenlm.Model, config=config), path)


def _loaded(load: Callable[[str], Any], path: Path) -> Any:
    """Return a model. Raises UserError for a file that is none."""
    try:
        return load(str(path))
    except (OSError, RuntimeError, ValueError) as e:
        raise UserError(f"--models: {path} cannot be loaded: {e}") from e


SOURCE = Source(
    name="commoncrawl",
    accepts=(".warc.gz", ".warc", ".wet.gz", ".wet", "wet.txt"),
    read=read,
    steps=(
        short,
        RepeatedParagraphs(),
        WithModels("language", ("lid.176.ftz",), language),
        WithModels("perplexity", ("en.sp.model", "en.arpa.bin"), perplexity, ("cutoff.csv",)),
        WithModels("reference", ("reference.bin",), reference),
    ),
    rights="Pages of the web of their authors, under Common Crawl's terms of use; a licence is "
    "noted where the page names one. Names, addresses and the like are as on the pages: nothing is "
    "removed.",
)
