"""arXiv: papers in its bulk files and one by one, joined and cleaned."""

import gzip
import json

import pytest

from helpers.paths import SHARED
from helpers.sources import Prepared, cut, link, tar
from llama_jax.data.sources.arxiv import SOURCE

PAPER = r"""
\documentclass{article}
\newcommand{\R}{\mathbb{R}}  % the reals
\begin{document}
\author{A. Author} \email{a@author.org}
\input{sections/intro}
% \input{old}
\include{end}
\bibliography{refs}
\end{document}
"""
FILES = {
    "paper/ms.tex": PAPER,
    "paper/sections/intro.tex": "\\section{Introduction}\nAn $x \\in \\R$.\n",
    "paper/end.tex": "\\section{End}\nThe end, 5\\% of it.",
    "paper/old.tex": "\\section{Old}\nOld.",
    "paper/reply.tex": r"\documentclass{letter}\begin{document}\section{A}\end{document}",
    "paper/figure.png": b"\x89PNG\0",
}
CLEAN = "\\section{Introduction}\nAn $x \\in \\mathbb{R}$.\n\n\\section{End}\nThe end, 5\\% of it."
SHORT = "\\documentclass{article}\\begin{document}\\section{S} Text. \\end{document}"


def prepared(path, content: bytes) -> Prepared:
    path.write_bytes(content)
    return Prepared(SOURCE, path)


def test_a_bulk_file_has_papers_of_one_file_and_of_many(tmp_path):
    bulk = {
        "1712/1712.01076.gz": gzip.compress(tar(FILES)),
        "1712/1712.00002.gz": gzip.compress(SHORT.encode()),
        "1712/1712.00003.pdf": b"%PDF-1.5",
        "1712/hep-th9901001.gz": gzip.compress(rb"\magnification=1200 Old. \bye"),
        "1712/hep-ex0408102.gz": gzip.compress(SHORT.encode()),
    }
    found = prepared(tmp_path / "arXiv_src_1712_001.tar", tar(bulk))
    assert found.texts == {
        "1712.01076": CLEAN,
        "1712.00002": r"\section{S} Text.",
        "hep-ex/0408102": r"\section{S} Text.",
    }
    assert found.dropped == {"1712.00003": "no_latex", "hep-th/9901001": "from_first_section"}
    paper, old = found.documents["1712.01076"], found.documents["hep-ex/0408102"]
    assert (paper.url, paper.date) == ("https://arxiv.org/abs/1712.01076", "2017-12")
    assert (old.url, old.date) == ("https://arxiv.org/abs/hep-ex/0408102", "2004-08")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1712.01076v2.tar.gz", gzip.compress(tar(FILES))),
        ("1712.01076v2.gz", gzip.compress(tar(FILES))),
        ("paper.tar", tar(FILES | {"paper/figure.eps.gz": gzip.compress(b"%!PS")})),
    ],
)
def test_a_paper_comes_alone(tmp_path, name, content):
    assert prepared(tmp_path / name, content).text == CLEAN


def test_a_name_or_a_link_in_a_tar_leads_nowhere(tmp_path):
    secret = tmp_path / "secret.tex"
    secret.write_text("SECRET")
    hostile = {
        "../ms.tex": SHORT.replace("Text.", rf"\input{{{secret}}}\input{{l}}\input{{../../x}}"),
        "/tmp/absolute.tex": "x",
        "l.tex": link("l.tex", str(secret)),
        "../../x.tex": "Outside.",
    }
    text = prepared(tmp_path / "a.tar.gz", gzip.compress(tar(hostile))).text
    assert "SECRET" not in text and "Outside." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "secret.tex"]


def test_files_that_input_each_other_end(tmp_path):
    files = {"ms.tex": SHORT.replace("Text.", r"\input{a}"), "a.tex": r"A\input{b}"}
    files["b.tex"] = r"B\input{a}"
    text = prepared(tmp_path / "a.tgz", gzip.compress(tar(files))).text
    assert text == r"\section{S} AB\input{a}"


def test_inputs_that_double_and_double_are_bad(tmp_path):
    files = {f"f{i}.tex": rf"\input{{f{i + 1}}}\input{{f{i + 1}}}" for i in range(40)}
    files |= {"f40.tex": "x" * 1000, "ms.tex": SHORT.replace("Text.", r"\input{f0}")}
    found = prepared(tmp_path / "a.tgz", gzip.compress(tar(files)))
    assert "inputs together are longer than" in found.reasons


@pytest.mark.parametrize(
    ("text", "charset"), [("naïve “quotes”", "cp1252"), ("ещё", "koi8-r"), ("ağ — é", "utf-8")]
)
def test_a_paper_has_the_charset_that_it_tells(tmp_path, text, charset):
    head = rf"\usepackage[{charset}]{{inputenc}}" if charset == "koi8-r" else ""
    paper = SHORT.replace("Text.", text).replace(r"\begin", rf"{head}\begin", 1)
    found = prepared(tmp_path / "a.gz", gzip.compress(paper.encode(charset)))
    assert found.text == rf"\section{{S}} {text}"


def test_a_damaged_paper_is_named_and_the_next_one_is_read(tmp_path):
    whole = gzip.compress(tar(FILES | {"data.bin": bytes(range(256)) * 1000}))
    wrong_sum = whole[:-8] + b"\0" * 4 + whole[-4:]
    bulk = {
        "1712/1712.00001.gz": cut(whole),
        "1712/1712.00002.gz": wrong_sum,
        "1712/1712.00003.gz": b"",
        "1712/1712.00004.gz": gzip.compress(b"\\section{\0}"),
        "1712/1712.00005.gz": whole,
    }
    found = prepared(tmp_path / "bulk.tar", tar(bulk))
    assert found.texts == {"1712.00005": CLEAN}
    assert [bad.where for bad in found.bad] == [f"1712/1712.0000{i}.gz" for i in range(1, 5)]
    for said in ("ended before the end-of-stream", "CRC check failed", "is empty", "NUL bytes"):
        assert said in found.reasons


def test_a_bulk_file_that_is_cut_gives_what_came_before(tmp_path):
    bulk = {f"1712/1712.0000{i}.gz": gzip.compress(SHORT.encode(), mtime=0) for i in range(9)}
    found = prepared(tmp_path / "bulk.tar", tar(bulk)[: 5 * 1024 + 512 + 50])  # in the sixth
    assert list(found.texts) == [f"1712.0000{i}" for i in range(5)]
    assert "unexpected end of data" in found.reasons


def test_what_redpajama_has_cleaned_stays_as_it_is(tmp_path):
    """But for comments and commands of a bibliography that its expressions have missed."""
    path = SHARED / "corpora/datajuicer_arxiv_redpajama.jsonl"
    if not path.exists():
        pytest.skip("RedPajama's sample is not here (../shared/data/corpora)")
    for number, line in enumerate(path.read_text().splitlines()):
        text = json.loads(line)["text"]
        paper = SHORT.replace(r"\section{S} Text.", f"Abstract.\n{text}\n")
        found = prepared(tmp_path / f"{number}.gz", gzip.compress(paper.encode())).text
        if number not in (2, 5, 6, 8):
            assert found.split() == text.split()
        assert len(found) > 0.75 * len(text)
        assert not [line for line in found.splitlines() if line.startswith("%")]
        assert r"\bibliographystyle" not in found
