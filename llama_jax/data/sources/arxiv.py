"""arXiv: the LaTeX sources of papers, as its bulk tar files or one by one.

Paper, section 2.1: everything before the first section and the bibliography are removed, comments
too, and the definitions and macros of users are expanded in place. RedPajama, the open recipe,
cuts at the first appendix besides; the paper does not, and so an appendix is kept here.

A bulk file, arXiv_src_YYMM_NNN.tar (https://info.arxiv.org/help/bulk_data_s3.html), holds a .gz for
each paper, which is a tar or else the only .tex file, and a .pdf for each that has no source.
Archives are read in memory and never unpacked, whatever names or links they have.
"""

import gzip
import io
import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources import latex
from llama_jax.data.sources.charset import decoded
from llama_jax.data.sources.source import Bad, Document, Source

LARGEST = 2**28  # bytes of one paper as it comes; arXiv takes 50 MB
LARGEST_TEXT = 2**24  # bytes of its LaTeX
LATEX = (".tex", ".ltx", ".latex")
INPUTS = (*LATEX, ".bbl", ".sty", ".def", ".txt", "")  # what \input may read
ENCODINGS = {"ansinew": "cp1252", "applemac": "mac-roman", "latin9": "iso8859-15"}  # of inputenc

_ID = r"(?P<archive>[a-z-]+)?(?P<year>\d\d)(?P<month>\d\d)(?:\d{3}|\.\d{4,5})(?:v\d+)?"
_SUBMISSION = re.compile(rf"(?:^|/)(?:\d{{4}}/[^/]+|{_ID})\.(?:gz|pdf)$")  # in a bulk file
_DOCUMENT = re.compile(r"(?m)^[^%\n]*\\document(?:class|style)\b")
_INPUT = re.compile(
    rf"(?P<kept>{latex.LITERAL}|%[^\n]*)"
    r"|\\(?:input|include|subfile)\s*\{\s*(?P<braced>[^{}]+?)\s*\}|\\input\s+(?P<bare>[^\s\\{}%]+)"
)


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield each paper: the LaTeX of its main file with what that inputs, none for a PDF.

    path: arXiv's .tar, or the .gz, .tgz or .tex of a paper. Raises what reading the file raises.
    """
    if path.suffix != ".tar":
        yield _paper(path.name, path.stat().st_size, path)
        return
    files: dict[str, str] = {}  # of the one paper whose .tar this is
    with tarfile.open(path, "r|") as archive:
        for member in archive:
            if not _SUBMISSION.search(member.name) or not member.isfile():
                _take(archive, member, files)
            elif member.name.endswith(".pdf"):
                yield _document(member.name, "")
            else:
                yield _paper(member.name, member.size, archive.extractfile(member))
    if files:
        yield _document(path.name, joined(files))


def _paper(name: str, num_bytes: int, file) -> Document | Bad:
    """Return the paper in a file of this name, Bad for one that cannot be read."""
    if num_bytes > LARGEST:
        return Bad(name, f"is longer than {LARGEST:,} bytes")
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        return _document(name, joined(_files(content)))
    except Exception as e:  # of the archive inside the archive; the next paper is another one
        return Bad(name, f"{type(e).__name__}: {e}")


def _document(name: str, text: str) -> Document:
    id = re.sub(r"\.(?:tar|gz|tgz|tex|pdf)\b", "", posixpath.basename(name))
    known = re.fullmatch(_ID, id)
    if known is None:
        return Document(text, id=id)
    if archive := known["archive"]:  # before April 2007
        id = f"{archive}/{id.removeprefix(archive)}"
    century = "19" if archive and known["year"] > "90" else "20"
    date = f"{century}{known['year']}-{known['month']}"
    return Document(text, id=id, url=f"https://arxiv.org/abs/{id}", date=date)


def _files(content: bytes) -> dict[str, str]:
    """Return name -> text of a paper: a tar or a file of LaTeX, compressed or not."""
    raw: io.BufferedIOBase = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):
        raw = gzip.GzipFile(fileobj=raw)
    head = raw.read(tarfile.BLOCKSIZE)
    raw.seek(0)
    files: dict[str, str] = {}
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:  # a single file
        text = raw.read(LARGEST_TEXT + 1)
        if len(text) > LARGEST_TEXT:
            raise ValueError(f"its LaTeX is longer than {LARGEST_TEXT:,} bytes") from None
        if not text.strip():
            raise EOFError("the file is empty") from None
        return {} if text.startswith(b"%PDF") else {"main.tex": _text(text)}
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            _take(archive, member, files)
    while raw.read(2**20):
        pass  # to the checksum at its end
    return files


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, str]) -> None:
    r"""Add what \input may read to `files`; a link or a device is nothing."""
    if posixpath.splitext(member.name)[1].lower() not in INPUTS or not member.isfile():
        return
    if member.size > LARGEST_TEXT or sum(map(len, files.values())) > 2 * LARGEST_TEXT:
        raise ValueError(f"{member.name}: its LaTeX is longer than {LARGEST_TEXT:,} bytes")
    file = archive.extractfile(member)
    assert file  # as of every regular member
    content = file.read()
    if b"\0" not in content:
        files[posixpath.normpath(member.name).lstrip("/")] = _text(content)


def _text(content: bytes) -> str:
    told = re.search(rb"\\usepackage\s*\[([\w-]+)\]\s*\{inputenc\}", content)
    name = told[1].decode().lower() if told else None
    return decoded(content, ENCODINGS.get(name, name) if name else None)


def joined(files: dict[str, str]) -> str:
    r"""Return the text of a paper's main file, "" if none is LaTeX, with the files that it inputs.

    The main file has a \documentclass; of several, it is the longest with its inputs. Raises
    ValueError if that does not end.
    """
    written = [name for name in files if posixpath.splitext(name)[1].lower() in LATEX]
    whole = [name for name in written if _DOCUMENT.search(files[name])]
    if not whole:
        whole = [name for name in written if r"\section" in files[name]] or written
    texts = [_with_inputs(name, files, (), [0]) for name in sorted(whole)]
    return max(texts, key=len, default="")


def _with_inputs(name: str, files: dict[str, str], above: tuple[str, ...], size: list[int]) -> str:
    size[0] += 256 + len(files[name])
    if size[0] > 2 * LARGEST_TEXT:
        raise ValueError(f"its inputs together are longer than {2 * LARGEST_TEXT:,} characters")
    directory = posixpath.dirname((above or (name,))[0])

    def put(match: re.Match) -> str:
        wanted = match["braced"] or match["bare"]
        if not wanted:
            return match[0]
        for path in (posixpath.join(directory, wanted), wanted):
            for candidate in (posixpath.normpath(path), posixpath.normpath(f"{path}.tex")):
                if candidate in files and candidate not in (*above, name):
                    return _with_inputs(candidate, files, (*above, name), size)
        return match[0]

    return _INPUT.sub(put, files[name])


def no_latex(document: Document) -> str | None:
    """Drop a paper whose source arXiv does not have."""
    return document.text or None


def without_comments(document: Document) -> str:
    """Return a paper without its comments."""
    return latex.without_comments(document.text)


def with_macros_expanded(document: Document) -> str:
    """Return a paper with its author's macros expanded in place."""
    return latex.expanded(document.text)


def from_first_section(document: Document) -> str | None:
    """Return a paper from its first section on; drop one that has none."""
    return latex.from_first_section(document.text)


def without_bibliography(document: Document) -> str | None:
    """Return a paper without its bibliography, with the space around what is gone closed up."""
    text = re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", latex.without_bibliography(document.text))
    return text.strip() or None


SOURCE = Source(
    name="arxiv",
    accepts=(".tar", ".gz", ".tgz", ".tex"),
    read=read,
    steps=(
        *(no_latex, without_comments, with_macros_expanded, from_first_section),
        without_bibliography,
    ),
    rights="Each paper is under the licence that its author chose, often arXiv's own, which lets "
    "arXiv alone pass it on; the sources do not say which, arXiv's metadata do, by id. Authors and "
    "their addresses stand before the first section, and go with what precedes it.",
)
