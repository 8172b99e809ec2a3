"""Wikipedia: articles of a dump, their wikitext as plain text."""

import bz2
import html
import os
from pathlib import Path

import pytest

from helpers.paths import SHARED
from helpers.sources import Prepared, cut
from llama_jax.data.sources.wikipedia import SOURCE

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="{language}">
  <siteinfo><dbname>{language}wiki</dbname><namespaces>
    <namespace key="0" /><namespace key="6">{file}</namespace>
    <namespace key="14">{category}</namespace>
  </namespaces></siteinfo>
"""
END = "</mediawiki>\n"


def page(id, title, text, ns=0, redirect="", date="2022-07-01T00:00:00Z") -> str:
    return (
        f"  <page><title>{html.escape(title)}</title><ns>{ns}</ns><id>{id}</id>{redirect}\n"
        f"    <revision><id>9{id}</id><timestamp>{date}</timestamp>"
        f"<text>{html.escape(text)}</text></revision></page>\n"
    )


def dump(*pages: str, language="en", file="File", category="Category") -> str:
    return HEAD.format(language=language, file=file, category=category) + "".join(pages) + END


def prepared(path: Path, content: str | bytes) -> Prepared:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Prepared(SOURCE, path)


@pytest.fixture
def parser():
    reason = "mwparserfromhell is of requirements-prepare.txt"
    return pytest.importorskip("mwparserfromhell", reason=reason)


# ---- Pages


def test_articles_of_the_languages_are_kept(tmp_path, parser):
    pages = [
        page(1, "Autism", "A & b."),
        page(2, "Autisme", "#REDIRECT [[Autism]]", redirect='<redirect title="Autism" />'),
        page(3, "Talk:Autism", "I think.", ns=1),
        page(4, "Old page", "New.", date="2024-01-01T00:00:00Z"),
        page(5, "Empty", "{{stub}}"),
    ]
    found = prepared(tmp_path / "enwiki-20220701-pages-articles.xml", dump(*pages))
    assert found.texts == {"en/1": "Autism\n\nA & b.", "en/4": "Old page\n\nNew."}
    assert found.dropped == {"en/2": "no_article", "en/3": "no_article", "en/5": "without_markup"}
    old, new = found.documents.values()
    assert (old.licence, new.licence) == ("CC-BY-SA-3.0", "CC-BY-SA-4.0")
    assert new.url == "https://en.wikipedia.org/wiki/Old_page"
    other = prepared(tmp_path / "jawiki.xml", dump(page(1, "T", "Text."), language="ja"))
    assert other.dropped == {"ja/1": "in_another_language"}


def test_a_dump_of_many_streams_is_read_to_its_end(tmp_path, parser):
    pages = [page(id, f"T{id}", "Text.") for id in range(200)]
    streams = [HEAD.format(language="uk", file="Файл", category="Категорія")]
    streams += ["".join(pages[i : i + 100]) for i in (0, 100)] + [END]
    content = b"".join(bz2.compress(stream.encode()) for stream in streams)
    found = prepared(tmp_path / "dump-multistream.xml.bz2", content)
    assert list(found.texts) == [f"uk/{id}" for id in range(200)]
    content = b"".join(bz2.compress(stream.encode()) for stream in streams[:2]) + b"BZh9 no"
    found = prepared(tmp_path / "a.xml.bz2", content)  # which bzip2 passes over
    assert (len(found.texts), "is cut short" in found.reasons) == (100, True)
    found = prepared(tmp_path / "b.xml.bz2", cut(bz2.compress("".join(streams).encode())))
    assert "EOFError" in found.reasons


def test_the_language_is_in_the_name_where_the_dump_has_no_head(tmp_path, parser):
    content = f"<mediawiki>{page(1, 'T', 'Text.')}</mediawiki>"
    found = prepared(tmp_path / "slwiki-20220620-p1p9.xml", content)
    assert list(found.texts) == ["sl/1"]


# ---- Wikitext

WIKITEXT = {
    "links": ("[[Latin language|Latin]] [[word]]s [[:Category:X|x]]", "Latin words x"),
    "addresses": (
        "See [http://x.y the site], [http://x.y] and http://x.y/z.",
        "See the site, and.",
    ),
    "formatting": ("'''''Bold''''' ''and'' <b>b</b><br/>H<sub>2</sub>O", "Bold and b\nH2O"),
    "references": (
        'A.<ref name="a">{{cite|x}} [[y]]</ref> B.<ref name="a" /><references/>',
        "A. B.",
    ),
    "a comment": ("A <!-- no\nno --> b", "A b"),
    "a template": ("{{Infobox\n| a = {{b|c}}\n}}\nA ({{lang|la|x}}; {{IPA|y}}) b {{c}}.", "A b."),
    "a picture": ("A\n[[File:x.jpg|thumb|A [[caption]]]]\nb [[Image:y.png]]", "A\n\nb"),
    "categories and other languages": ("A\n[[Category:X|y]]\n[[de:A]] [[zh-min-nan:A]]", "A"),
    "a table": ('A\n{| class="x"\n! a !! b\n|-\n| 1 || {{c}}\n|}\nB', "A\n\nB"),
    "a table that does not end": ("A\n{|\n| 1\n| ''2\nB", "A\n\nB"),
    "italics that do not end": ("''A [[b]] <ref>''c</ref>\nD '''e", "A b\nD e"),
    "lists": ("* a\n** b\n# c\n: d\n; e", "* a\n** b\n* c\nd\ne"),
    "signs": ("a&nbsp;&ndash; caf&eacute; __NOTOC__", "a – café"),
    "code": (
        "<syntaxhighlight lang=\"c\">\nx =  '' ; // [[a]]\n    ( y )\n</syntaxhighlight>",
        "x =  '' ; // [[a]]\n    ( y )",
    ),
    "formulas": ("<math>x^{{2}}</math> is <nowiki>''a''</nowiki>", "$x^{{2}}$ is ''a''"),
    "sections": (
        "A\n== B ==\n=== C ===\nc\n== D ==\n== References ==\n{{reflist}}\n== E ==\ne",
        "A\n\nB\n\nC\n\nc\n\nE\n\ne",
    ),
    "a gallery": ("A<gallery>\nFile:a.jpg|cap\n</gallery>", "A"),
}


@pytest.mark.parametrize("case", WIKITEXT)
def test_wikitext_becomes_plain_text(tmp_path, case, parser):
    wikitext, expected = WIKITEXT[case]
    found = prepared(tmp_path / "a.xml", dump(page(1, "T", wikitext)))
    assert found.text == f"T\n\n{expected}"


def test_a_dump_tells_its_names_for_files_and_categories(tmp_path, parser):
    text = "A [[Файл:x|міні|Підпис]][[категорія:Б]][[Файл:y.webm]] [[Інше:Б|б]]"
    content = dump(page(1, "T", text), language="uk", file="Файл", category="Категорія")
    assert prepared(tmp_path / "a.xml", content).text == "T\n\nA б"


def test_real_articles_have_no_markup_left(parser):
    """gensim's wheel has 206 pages of English Wikipedia in gensim/test/test_data."""
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    folders = [SHARED / "corpora", Path(os.environ.get("GENSIM_TEST_DATA", "."))]
    path = next((folder / name for folder in folders if (folder / name).exists()), None)
    if path is None:
        pytest.skip("the dump of gensim's wheel is not here (GENSIM_TEST_DATA=its test_data)")
    found = Prepared(SOURCE, path)
    assert (len(found.texts), len(found.dropped), found.bad) == (106, 100, [])
    for id, text in found.texts.items():
        left = [sign for sign in ("[[", "<ref", "''", "http://", "{|", "Category:") if sign in text]
        assert left == [], id


# ---- Damage


def test_a_damaged_page_is_named_and_the_next_one_is_read(tmp_path, parser):
    damaged = [
        page(1, "A", "Text."),
        page(2, "B", "Text.").replace("</text>", ""),
        page(3, "C", "Text.").replace("Text.", "&bomb;"),
        page(4, "D", "Text.").replace("<id>4</id>", ""),
        page(5, "E", "Text."),
        page(6, "F", "Text.")[:100],
    ]
    content = dump(*damaged).replace("<mediawiki", '<!DOCTYPE m [<!ENTITY bomb "x">]><mediawiki', 1)
    found = prepared(tmp_path / "a.xml", content.encode().replace(b"E</title>", b"\xff</title>"))
    assert list(found.texts) == ["en/1"]
    for said in ("mismatched tag", "undefined entity", "page D: has no title or no id"):
        assert said in found.reasons
    assert found.reasons.count("invalid token") == 1
    assert len(found.bad) == 5
