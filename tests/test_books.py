"""Books: Project Gutenberg's texts without what it puts around them, and PG-19's rows."""

import json

import pytest

from helpers.sources import Prepared, cut
from llama_jax.data.sources import books
from llama_jax.data.sources.source import NearDuplicates

BOOK = "MOBY-DICK;\n\nor, THE WHALE.\n\nCall me Ishmael. ***\n\n   Produced at sea."
HEAD = "The Project Gutenberg eBook of Moby-Dick\n\nTitle: Moby-Dick\n\nAuthor: Herman Melville\n"

MARKS = {
    "since 2005": (
        f"{HEAD}\n*** START OF THE PROJECT GUTENBERG EBOOK MOBY-DICK ***\n",
        "*** END OF THE PROJECT GUTENBERG EBOOK MOBY-DICK ***\n\nSection 1. Terms",
    ),
    "before that": (
        f"{HEAD}\n***START OF THIS PROJECT GUTENBERG EBOOK MOBY-DICK; OR\nTHE WHALE***\n\n\n"
        "Produced by A. Person and\nthe Online Distributed Proofreading Team\n\n"
        "[Transcriber's Note: errors are kept.]\n\n",
        "End of the Project Gutenberg EBook of Moby-Dick, by Herman Melville\n\n"
        "*** END OF THIS PROJECT GUTENBERG EBOOK MOBY-DICK ***",
    ),
    "without an end to the mark": (
        f"{HEAD}\n*** START OF THE PROJECT GUTENBERG EBOOK, MOBY-DICK\n",
        "*** END OF THE PROJECT GUTENBERG EBOOK",
    ),
    "the small print of the nineties": (
        "***The Project Gutenberg Etext of Moby-Dick***\n#1 in our series\n\n"
        "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n"
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n",
        "End of The Project Gutenberg Etext of Moby-Dick",
    ),
    "one line": (
        "\n\nThe Project Gutenberg Etext of Moby-Dick\n\n",
        "*End of The Project Gutenberg Etext of Moby-Dick",
    ),
    "in German": (
        f"{HEAD}\n*** START OF THE PROJECT GUTENBERG EBOOK MOBY-DICK ***\n",
        "Ende dieses Projekt Gutenberg Etextes Moby-Dick",
    ),
    "none": ("", ""),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("case", MARKS)
def test_header_and_licence_are_removed(tmp_path, case, end):
    before, after = MARKS[case]
    path = tmp_path / "2701-0.txt"
    path.write_bytes(f"{before}{BOOK}\n\n\n{after}\n".replace("\n", end).encode())
    found = Prepared(books.SOURCE, path)
    assert found.text == BOOK
    assert found.documents["2701"].url == "https://www.gutenberg.org/ebooks/2701"
    title = "Moby-Dick" if before.startswith(HEAD) else None
    assert found.documents["2701"].provenance == {"title": title}


@pytest.mark.parametrize("name", ["pg2701.txt", "2701-8.txt", "2701.txt.utf-8", "2701.txt"])
def test_a_name_of_gutenberg_s_tells_the_number(tmp_path, name):
    (tmp_path / name).write_text(BOOK)
    assert list(Prepared(books.SOURCE, tmp_path / name).texts) == ["2701"]


def test_a_short_text_is_not_taken_for_its_longer_licence(tmp_path):
    before, after = MARKS["since 2005"]
    licence = "You may copy it.\n" * 2000 + "The Project Gutenberg eBook is a trademark\n" * 3
    (tmp_path / "1.txt").write_text(f"{before}Short.\n{after}{licence}")
    assert Prepared(books.SOURCE, tmp_path / "1.txt").text == "Short."


def test_the_mark_of_a_charset_is_no_text(tmp_path):
    (tmp_path / "1.txt").write_text("Text.", encoding="utf-8-sig")
    assert Prepared(books.SOURCE, tmp_path / "1.txt").text == "Text."


def test_a_text_under_copyright_is_dropped(tmp_path):
    before = MARKS["since 2005"][0].replace("PROJECT", "COPYRIGHTED PROJECT")
    (tmp_path / "1.txt").write_text(f"{before}{BOOK}")
    assert Prepared(books.SOURCE, tmp_path / "1.txt").dropped == {"1": "under_copyright"}


@pytest.mark.parametrize(
    ("told", "charset", "text"),
    [
        ("ISO-8859-1", "latin-1", "naïve"),
        ("ASCII", "cp1252", "“naïve”"),
        ("KOI8-R", "koi8-r", "Война и мир"),
        ("UTF-8", "utf-8", "Война — мир"),
        ("", "utf-16", "Война — мир"),
        ("nothing known", "latin-1", "naïve"),
    ],
)
def test_a_book_has_the_charset_that_it_tells(tmp_path, told, charset, text):
    before = MARKS["since 2005"][0]
    content = f"Character set encoding: {told}\n{before}{text}"
    (tmp_path / "1.txt").write_bytes(content.encode(charset))
    assert Prepared(books.SOURCE, tmp_path / "1.txt").text == text


ROWS = [
    {
        "text": BOOK,
        "short_book_title": "Moby-Dick",
        "publication_date": 1851,
        "url": "http://g/2701",
    },
    {"text": "Another."},
]


def test_rows_of_pg_19(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*lines, "", '{"title": 1}', "[1]", "{", '{"text": 3}']))
    found = Prepared(books.SOURCE, path)
    assert found.texts == {"2701": BOOK, "train.jsonl/row 2": "Another."}
    assert found.documents["2701"].date == "1851"
    assert [bad.where for bad in found.bad] == ["row 4", "line 5", "line 6", "row 7"]


def test_rows_of_parquet(tmp_path):
    reason = "pyarrow is of requirements-prepare.txt"
    pyarrow = pytest.importorskip("pyarrow", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS * 100), path)
    where = [path.name for path in [path] if list(books.rows(path)) != []]
    assert where == ["train.parquet"]
    found = [row for _, row in books.rows(path)]  # pyright: ignore[reportGeneralTypeIssues]
    assert [row["text"] for row in found] == [BOOK, "Another."] * 100
    path.write_bytes(cut(path.read_bytes()))
    assert "ArrowInvalid" in Prepared(books.SOURCE, path).reasons


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"x" * (books.LARGEST + 1), "is longer than 33,554,432 bytes"),
        (b"PK\3\4\0\0\0", "holds NUL bytes"),
    ],
)
def test_what_is_no_book_is_bad(tmp_path, content, reason):
    (tmp_path / "1.txt").write_bytes(content)
    assert reason in Prepared(books.SOURCE, tmp_path / "1.txt").reasons


def test_books_that_share_nine_tenths_are_duplicates():
    assert books.SOURCE.steps[-1] == NearDuplicates(0.9)
