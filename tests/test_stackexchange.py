"""StackExchange: questions with their answers from Posts.xml, whatever is wrong with it."""

import html
import xml.etree.ElementTree as ET

import pytest

from helpers.paths import SHARED
from helpers.sources import Prepared, cut
from llama_jax.data.sources import xml_elements
from llama_jax.data.sources.stackexchange import LARGEST_SITES, SOURCE, plain

HEAD = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def row(id, body, parent=None, **more) -> str:
    kind = {"PostTypeId": 2, "ParentId": parent} if parent else {"PostTypeId": 1}
    fields = {"Id": id, "Body": body, "Score": 0} | kind | more
    attributes = [f'{name}="{html.escape(str(value))}"' for name, value in fields.items()]
    return f"  <row {' '.join(attributes)} />\n"


def prepared(path, rows: list[str], head: str = HEAD, end: str = "</posts>\n") -> Prepared:
    path.parent.mkdir(exist_ok=True)
    path.write_text(head + "".join(rows) + end, encoding="utf-8")
    return Prepared(SOURCE, path)


ROWS = [
    row(1, "<p>How?</p>", Title='On "a" & b', CreationDate="2015-01-27T20:09:32.720"),
    row(5, "<p>Low.</p>", parent=1, Score=-2),
    row(6, "<p>And?</p>", Title="Second", ContentLicense="CC BY-SA 4.0"),
    row(7, "<p>First of two.</p>", parent=1, Score=10),
    row(8, "<p>Best of it.</p>", parent=6, Score=1),
    row(9, "<p>Second of two.</p>", parent=1, Score=10),
    row(10, "A wiki", PostTypeId=4),
    row(11, "<p>Nine.</p>", parent=1, Score=9),
]


def test_answers_follow_their_question_by_score(tmp_path):
    found = prepared(tmp_path / "stackoverflow.com/Posts.xml", ROWS)
    answers = ["First of two.", "Second of two.", "Nine.", "Low."]
    assert found.texts == {
        "stackoverflow.com/1": "\n\nA: ".join(['Q: On "a" & b\n\nHow?', *answers]),
        "stackoverflow.com/6": "Q: Second\n\nAnd?\n\nA: Best of it.",
    }
    first, second = found.documents.values()
    assert first.url == "https://stackoverflow.com/questions/1"
    assert (first.date, first.licence) == ("2015-01-27T20:09:32.720", "CC-BY-SA")
    assert (second.licence, second.provenance["scores"]) == ("CC-BY-SA-4.0", [1])


def test_real_posts_are_in_the_order_of_their_scores():
    path = SHARED / "corpora/stackexchange_coffee_Posts.xml"
    if not path.exists():
        pytest.skip("the posts of coffee.stackexchange are not here (../shared/data/corpora)")
    rows = list(ET.parse(path).getroot())
    questions = {row.attrib["Id"] for row in rows if row.get("PostTypeId") == "1"}
    found = Prepared(SOURCE, path)
    assert (found.documents.keys(), found.bad) == (questions, [])
    for id, document in found.documents.items():
        answers = [row for row in rows if row.get("ParentId") == id]
        scores = sorted((int(row.attrib["Score"]) for row in answers), reverse=True)
        assert document.provenance["scores"] == scores
        assert document.text.startswith("Q: ") and document.text.count("\n\nA: ") == len(scores)
        assert not [tag for tag in ("<p>", "</", "&lt;", "&amp;") if tag in document.text]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("math.stackexchange.com/Posts.xml", True),
        ("coffee.stackexchange.com/Posts.xml", False),
        ("meta.stackoverflow.com/Posts.xml", False),
        ("downloads/Posts.xml", True),
    ],
)
def test_the_largest_sites_are_kept(tmp_path, name, kept):
    found = prepared(tmp_path / name, ROWS)
    assert (len(found.texts), set(found.dropped.values())) == (
        (2, set()) if kept else (0, {"of_a_smaller_site"})
    )


def test_there_are_28_of_them():
    assert len(LARGEST_SITES) == 28


def test_posts_come_inside_of_7z(tmp_path):
    py7zr = pytest.importorskip("py7zr", reason="py7zr is of requirements-prepare.txt")
    for name, password in (("superuser.com.7z", None), ("askubuntu.com.7z", "secret")):
        with py7zr.SevenZipFile(tmp_path / name, "w", password=password) as archive:
            archive.writestr("<users />", "Users.xml")
            archive.writestr(HEAD + "".join(ROWS) + "</posts>", "Posts.xml")
    assert list(Prepared(SOURCE, tmp_path / "superuser.com.7z").texts) == [
        "superuser.com/1",
        "superuser.com/6",
    ]
    assert "encrypted" in Prepared(SOURCE, tmp_path / "askubuntu.com.7z").reasons
    whole = tmp_path / "superuser.com.7z"
    whole.write_bytes(cut(whole.read_bytes()))
    assert "Bad7zFile" in Prepared(SOURCE, whole).reasons


# ---- HTML

PAGES = {
    "paragraphs": ("<p>a\nb  <b>c</b></p>\n\n<p>d<br>e</p>", "a b c\n\nd\ne"),
    "code": (
        "<p>a:</p><pre><code>if a &lt; b:\n\n    c\n</code></pre><p>d</p>",
        "a:\n\nif a < b:\n\n    c\n\nd",
    ),
    "a list": ("<ul>\n<li>a</li>\n<li><p>b</p>\n<p>c</p></li>\n</ul>d", "* a\n* b\n\nc\n\nd"),
    "numbers": ("<p>x</p><ol>\n<li>a</li><li>b</li></ol><p>y</p>", "x\n\n1. a\n2. b\n\ny"),
    "nested": (
        "<ul><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ul>",
        "* a\n  * b\n  * c\n* d",
    ),
    "a link and a picture": ('<a href="x">a</a> <img src="y" alt="no"> b', "a b"),
    "a quotation": ("<blockquote>\n<p>a</p>\n</blockquote>\n<p>b</p>", "a\n\nb"),
    "a table": ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td></tr></table>", "a | b\n1"),
    "signs": ("<p>x &lt; y &amp;&amp; z &hearts; &#65;</p>", "x < y && z ♥ A"),
    "paragraphs in a list": ("<ul><li><p>a</p></li>\n<li><p>b</p></li></ul>", "* a\n* b"),
    "tags that do not match": ("<p>a</b>b</pre></ul></li></p> <li>c", "ab\n\n* c"),
    "no tag at all": ("a < b", "a < b"),
    "a section of SGML": ("a <![if x]> b", "a b"),
}


@pytest.mark.parametrize("case", PAGES)
def test_html_becomes_text(case):
    given, expected = PAGES[case]
    assert plain(given) == expected


@pytest.mark.parametrize("end", ["<b", "<![x", "<!--", "<pre>", "&#", '<a href="', "</"])
def test_html_that_is_cut_is_text_up_to_there(end):
    assert plain(f"<p>a</p>{end}").startswith("a")


# ---- Damage

BOMB = '<?xml version="1.0"?>\n<!DOCTYPE posts [<!ENTITY a "{}"><!ENTITY b SYSTEM "{}">]><posts>'


def test_entities_are_not_expanded(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    rows = [ROWS[0], '<row Id="2" PostTypeId="1" Title="x" Body="&a;" />\n', ROWS[2]]
    rows.insert(0, '<row Id="3" PostTypeId="1" Body="x">&b;</row>\n')
    head = BOMB.format("EXPANDED" * 1000, secret.as_uri())
    found = prepared(tmp_path / "Posts.xml", rows, head)
    assert list(found.texts) == ["1", "6"]
    assert found.reasons.count("undefined entity") == 2


def test_a_damaged_row_is_named_and_the_next_one_is_read(tmp_path):
    damaged = [
        ROWS[0],
        '  <row Id="20" PostTypeId="1" Body="a < b" />\n',
        '  <row Id="21" PostTypeId="1" Body="&#1;" />\n',
        '  <row Id="22" PostTypeId="1" Title="no body" />\n',
        '  <row Id="x" PostTypeId="1" Body="no number" />\n',
        row(23, "x" * (xml_elements.LARGEST + 1)),
        row(24, "Of nothing", parent=99),
        ROWS[2],
    ]
    found = prepared(tmp_path / "Posts.xml", damaged)
    assert list(found.texts) == ["1", "6"]
    for said in (
        'element 2, \'<row Id="20" PostTypeId="1" Body="a < b" />',
        'element 3, \'<row Id="21"',
        "<row> with Id 22: is no post: KeyError: 'Body'",
        "<row> with Id x: is no post",
        "element 6: is longer than 33,554,432 bytes",
        "1 answers: their questions are not in the file",
    ):
        assert said in found.reasons
    assert len(found.bad) == 6


@pytest.mark.parametrize("content", [b"", b"<posts></posts>", b"\x89PNG\0\r\n" * 1000])
def test_what_is_no_dump_is_bad(tmp_path, content):
    (tmp_path / "Posts.xml").write_bytes(content)
    found = Prepared(SOURCE, tmp_path / "Posts.xml")
    assert (len(found.bad), found.texts) == (1, {})
    assert "is empty" in found.reasons or "holds no <row>" in found.reasons


def test_what_comes_before_a_cut_is_read(tmp_path):
    rows = [row(id, f"Text {id} " * 50, Title="T") for id in range(1, 101)]
    found = prepared(tmp_path / "Posts.xml", [*rows[:10], rows[10][:200]], end="")
    assert list(found.texts) == [str(id) for id in range(1, 11)]
    assert "is not well-formed XML" in found.reasons
