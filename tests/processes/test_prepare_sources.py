"""prepare: a small dump of each source, in upstream's format, through the real pipeline."""

import bz2
import gzip
import json
import subprocess
from pathlib import Path

import pytest

from helpers import preparing
from helpers.sources import tar

POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" Score="3" Title="How?" Body="&lt;p&gt;Q &amp;amp; a&lt;/p&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="1" Body="&lt;p&gt;Low.&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="2" Body="&lt;p&gt;High.&lt;/p&gt;" />
</posts>
"""
PAGES = """<mediawiki>
  <siteinfo><dbname>frwiki</dbname></siteinfo>
  <page><title>Baleine</title><ns>0</ns><id>7</id><revision>
    <text>'''Une [[Cetacea|baleine]]'''.&lt;ref&gt;x&lt;/ref&gt;</text></revision></page>
  <page><title>Whale</title><ns>0</ns><id>8</id><redirect title="Baleine" /><revision>
    <text>#REDIRECT [[Baleine]]</text></revision></page>
</mediawiki>
"""
PAPER = r"""\documentclass{article}\newcommand{\R}{\mathbb{R}}
\begin{document}\section{A} On $\R$. % not
\bibliography{a}\end{document}"""
BOOK = """The Project Gutenberg eBook of Moby-Dick
*** START OF THE PROJECT GUTENBERG EBOOK MOBY-DICK ***
Call me Ishmael. Some years ago, never mind how long precisely.
*** END OF THE PROJECT GUTENBERG EBOOK MOBY-DICK ***"""
CODE = "def add(a, b):\n    return a + b\n"
ROWS = [
    {"repo_name": "o/r", "path": path, "content": f"# Copyright A\n{CODE}", "license": licence}
    for path, licence in (("a.py", "mit"), ("b.py", "mit"), ("c.py", "gpl-2.0"))
]
MADE = {
    "stackexchange": ("math.stackexchange.com/1", "Q: How?\n\nQ & a\n\nA: High.\n\nA: Low."),
    "wikipedia": ("fr/7", "Baleine\n\nUne baleine."),
    "arxiv": ("1712.01076", r"\section{A} On $\mathbb{R}$."),
    "books": ("2701", "Call me Ishmael. Some years ago, never mind how long precisely."),
    "github": ("o/r/a.py", CODE),
}
SEVEN_ZIP = """
import py7zr, sys
with py7zr.SevenZipFile(sys.argv[1], "w") as archive:
    archive.writestr(sys.stdin.read(), "Posts.xml")
"""


def write_dump(source: str, folder: Path) -> None:
    if source == "stackexchange":
        path = folder / "math.stackexchange.com.7z"
        subprocess.run(
            [preparing.PYTHON, "-c", SEVEN_ZIP, path], input=POSTS, text=True, check=True
        )
    elif source == "wikipedia":
        content = bz2.compress(PAGES.encode())
        (folder / "frwiki-20220620-pages-articles.xml.bz2").write_bytes(content)
    elif source == "arxiv":
        content = tar({"1712/1712.01076.gz": gzip.compress(PAPER.encode())})
        (folder / "arXiv_src_1712_001.tar").write_bytes(content)
    elif source == "books":
        (folder / "pg2701.txt").write_text(BOOK)
        (folder / "2701-0.txt").write_text(BOOK)
    else:
        lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
        (folder / "000000000000.json.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.mark.parametrize("source", MADE)
def test_a_dump_becomes_documents(source, tmp_path):
    preparing.need_environment()
    (tmp_path / "dump").mkdir()
    write_dump(source, tmp_path / "dump")
    where = ["--input", tmp_path / "dump", "--output", tmp_path / "corpus"]
    done = preparing.prepare(source, *where)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "corpus" / source
    documents = [(document["id"], document["text"]) for document in preparing.documents(made)]
    assert documents == [MADE[source]]
    report = json.loads((made / "report.json").read_text())
    assert report["bad"]["pieces"] == 0 and report["rights"]
