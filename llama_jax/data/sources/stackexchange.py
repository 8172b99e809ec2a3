"""StackExchange: questions with their answers, from the Posts.xml of a site or its .7z.

Paper, section 2.1: the 28 largest sites, HTML removed, answers by score, the highest first. The
dumps: https://archive.org/details/stackexchange, SITE.7z or, of Stack Overflow alone,
stackoverflow.com-Posts.7z; unpacked, SITE/Posts.xml.
"""

import contextlib
import itertools
import re
import sqlite3
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

from llama_jax.data.sources import lines, seven_zip
from llama_jax.data.sources.source import Bad, Document, Source
from llama_jax.data.sources.xml_elements import elements

# The paper does not name them. These are large by counts of questions around 2021, without the
# sites about a site; which ones are the last few is a choice.
LARGEST_SITES = frozenset(
    {
        *("stackoverflow.com", "superuser.com", "askubuntu.com", "serverfault.com"),
        *("ru.stackoverflow.com", "es.stackoverflow.com", "pt.stackoverflow.com"),
        "mathoverflow.net",
        *(
            f"{name}.stackexchange.com"
            for name in (
                *("math", "tex", "unix", "physics", "electronics", "stats", "english", "gis"),
                *("apple", "gaming", "salesforce", "magento", "wordpress", "ell", "dba"),
                *("softwareengineering", "mathematica", "sharepoint", "blender", "drupal"),
            )
        ),
    }
)
SITE = re.compile(r"((?:[\w-]+\.)+(?:com|net))(?:-Posts)?(?:\.7z)?")  # a name of upstream's
COLUMNS = ("question", "is_answer", "score", "id", "date", "licence", "title", "body")
QUESTION, ANSWER = "1", "2"  # PostTypeId; others are wikis of tags, elections and the like


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield each question of a site with its answers, and Bad for rows that cannot be read.

    The posts go through a database in a temporary file, because an answer may stand gigabytes
    after its question. Raises what reading the file raises, after what came before it.
    """
    site = next((m[1] for name in (path.name, path.parent.name) if (m := SITE.fullmatch(name))), "")
    broken: Exception | None = None
    lost = 0  # answers without their question
    # In memory until it is large, then in a file without a name.
    with contextlib.closing(sqlite3.connect("")) as posts:
        posts.execute(f"CREATE TABLE posts ({', '.join(COLUMNS)})")
        insert = f"INSERT INTO posts VALUES ({', '.join('?' * len(COLUMNS))})"
        try:
            for row in _rows(path):
                if isinstance(row, Bad):
                    yield row
                else:
                    posts.execute(insert, row)
        except Exception as e:  # of reading; the questions that were read come before it
            broken = e
        ordered = posts.execute(
            "SELECT * FROM posts ORDER BY question, is_answer, score DESC, id",
        )
        for _, group in itertools.groupby(ordered, key=lambda post: post[0]):
            question, *answers = group
            if question[1]:
                lost += 1 + len(answers)
            else:
                yield _document(site, question, answers)
    if lost:
        yield Bad(f"{lost:,} answers", "their questions are not in the file")
    if broken:
        raise broken


def _rows(path: Path) -> Iterator[tuple | Bad]:
    """Yield COLUMNS of each post."""
    with _open(path) as file:
        for row in elements(file, "row"):
            if isinstance(row, Bad):
                yield row
                continue
            kind = row.get("PostTypeId")
            try:
                own, score = int(row.attrib["Id"]), int(row.get("Score", 0))
                if kind not in (QUESTION, ANSWER):
                    continue
                question = int(row.attrib["ParentId"]) if kind == ANSWER else own
                title, body = row.get("Title", ""), plain(row.attrib["Body"])
            except (KeyError, ValueError) as e:
                yield Bad(f"<row> with Id {row.get('Id')}", f"is no post: {type(e).__name__}: {e}")
                continue
            date, licence = row.get("CreationDate"), row.get("ContentLicense")
            yield question, kind == ANSWER, score, own, date, licence, title, body


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".7z":
        return seven_zip.open_member(path, "Posts.xml")
    return lines.open_binary(path)


def _document(site: str, question: tuple, answers: list[tuple]) -> Document:
    """Return a question and its answers as one document; each of them is COLUMNS."""
    number, _, score, _, date, licence, title, body = question
    text = f"Q: {title}\n\n{body}" if title else f"Q: {body}"
    return Document(
        text="\n\n".join([text, *(f"A: {answer[-1]}" for answer in answers)]),
        id=f"{site}/{number}" if site else str(number),
        url=f"https://{site}/questions/{number}" if site else None,
        licence=(licence or "CC BY-SA").replace(" ", "-"),
        date=date,
        provenance={"site": site, "score": score, "scores": [answer[2] for answer in answers]},
    )


class _Text(HTMLParser):
    """What a post's HTML shows: blocks apart, items of lists on lines of their own, code as is."""

    BLOCKS = {"p", "pre", "blockquote", "ul", "ol", "table", "hr", "div", "dl"} | {
        f"h{level}" for level in range(1, 7)
    }
    LINES = {"br", "li", "tr", "dt", "dd"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.newlines = 0  # to write before what comes next
        self.marker = ""  # of a list's item, to write before its text
        self.lists: list[int | None] = []  # the next number, None for bullets, of those open
        self.code = 0  # how many <pre> are open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._break(tag, apart=not self.lists or tag not in ("ul", "ol"))
        if tag in ("ul", "ol"):
            self.lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self._item()
        elif tag in ("td", "th") and not self.newlines:
            self._write(" | ")
        self.code += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("ul", "ol") and self.lists:
            self.lists.pop()
        if tag == "pre" and self.code:
            self.code -= 1
            if self.parts:
                self.parts[-1] = self.parts[-1].rstrip("\n")
        self._break(tag, apart=not self.lists)

    def handle_data(self, data: str) -> None:
        if not self.code:
            data = re.sub(r"\s+", " ", data)
            if self.newlines or not self.parts or self.parts[-1].endswith((" ", "\n")):
                data = data.lstrip()
        if data:
            self._write(data)

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        return self.parse_bogus_comment(i)  # an AssertionError otherwise, for "<![x"

    def _break(self, tag: str, apart: bool) -> None:
        if self.marker:
            return  # the item's text follows its marker
        if tag in self.BLOCKS:
            self.newlines = max(self.newlines, 2 if apart else 1)
        elif tag in self.LINES:
            self.newlines = max(self.newlines, 1)

    def _item(self) -> None:
        number = self.lists[-1] if self.lists else None
        self.marker = "  " * (len(self.lists) - 1) + ("* " if number is None else f"{number}. ")
        if number is not None:
            self.lists[-1] = number + 1

    def _write(self, text: str) -> None:
        if self.newlines and self.parts:
            self.parts[-1] = self.parts[-1].rstrip(" ")
            self.parts.append("\n" * self.newlines)
        self.parts += [self.marker, text]
        self.newlines, self.marker = 0, ""


def plain(html: str) -> str:
    """Return the text of a post's HTML."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return "".join(parser.parts).rstrip()


def of_a_smaller_site(document: Document) -> str | None:
    """Drop the questions of a site outside LARGEST_SITES, where the file's name says which."""
    site = document.provenance["site"]
    return document.text if not site or site in LARGEST_SITES else None


SOURCE = Source(
    name="stackexchange",
    accepts=("Posts.xml", "Posts.7z", ".com.7z", ".net.7z"),
    read=read,
    steps=(of_a_smaller_site,),
    rights="Posts are under CC BY-SA, in the version that each row names (2.5, 3.0 or 4.0), which "
    "asks for attribution: the url leads to the authors. Names of users are not taken over; what "
    "they wrote about themselves or others in a post is.",
)
