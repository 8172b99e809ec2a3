"""GitHub: rows of the public dump on BigQuery, and plain checkouts.

Paper, section 2.1: projects under Apache, BSD and MIT licences; low-quality files left out by the
length of lines and the proportion of alphanumeric characters; boilerplate such as headers removed
with regular expressions; deduplicated by file, with exact matches. It names no thresholds and no
kinds of file: these are RedPajama's (github.com/togethercomputer/RedPajama-Data, rp_v1,
data_prep/github), without its letters per token, which would need a tokenizer.

The dump is bigquery-public-data.github_repos, its tables `contents`, `files` and `licenses` joined
and exported. A checkout is a directory with a .git, as `git clone` makes it, or with a licence.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources.rows import rows
from llama_jax.data.sources.source import Bad, Document, ExactDuplicates, Source

# As BigQuery spells them -> as SPDX does.
LICENCES = {
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "mit": "MIT",
}
LARGEST = 2**20  # bytes of one file of a checkout; the dump has none that is larger
LONGEST_LINE = 1000  # characters
LONGEST_MEAN_LINE = 100  # characters
FEWEST_ALPHANUMERIC = 0.25  # of the characters
ENDINGS = (
    *(".asm", ".bat", ".cmd", ".c", ".h", ".cs", ".cpp", ".hpp", ".c++", ".h++", ".cc", ".hh"),
    *(".C", ".H", ".cmake", ".css", ".dockerfile", ".f90", ".f", ".f03", ".f08", ".f77", ".f95"),
    *(".for", ".fpp", ".go", ".hs", ".html", ".java", ".js", ".jl", ".lua", ".md", ".markdown"),
    *(".php", ".php3", ".php4", ".php5", ".phps", ".phpt", ".pl", ".pm", ".pod", ".perl", ".ps1"),
    *(".psd1", ".psm1", ".py", ".rb", ".rs", ".sql", ".scala", ".sh", ".bash", ".command", ".zsh"),
    *(".ts", ".tsx", ".tex", ".vb", "Dockerfile", "Makefile", ".xml", ".rst", ".m", ".smali"),
)

# A sentence of each licence, its white space folded, in the order in which they are tried.
TEXTS = (
    (r"GNU (LESSER |AFFERO )?GENERAL PUBLIC LICENSE|Mozilla Public License", None),
    (r"Apache License,? Version 2\.0", "Apache-2.0"),
    (r"Permission is hereby granted, free of charge, to any person obtaining a copy", "MIT"),
    (r"All advertising materials mentioning", None),  # four clauses
    (r"Redistribution and use in source and binary forms.*Neither the name", "BSD-3-Clause"),
    (r"Redistribution and use in source and binary forms", "BSD-2-Clause"),
)
LICENCE_FILE = re.compile(r"(?i)(licen[cs]e|copying)([-_.].*)?")

DUMPS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".parquet")


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the files of a dump's rows, or the one file of a checkout that this is.

    A row has "content" (or "code"), "repo_name", "path" and "license". Raises what reading the
    file raises.
    """
    root = licensed = None
    for parent in path.parents:
        if _licence_files(parent):
            root, licensed = parent, licensed or parent
        if (parent / ".git").exists():
            root = parent
            break
    if path.name.endswith(DUMPS) and (root is None or _is_dump(path)):
        for found in rows(path):
            yield found if isinstance(found, Bad) else _of_row(*found)
    elif ".git" not in path.parts and path.is_file() and not path.is_symlink():
        licence = _licence(licensed) if licensed else None
        yield _of_checkout(path, root or path.parent, licence)


def _is_dump(path: Path) -> bool:
    """Return whether a file that lies in a checkout is a dump all the same."""
    try:
        first = next(rows(path), None)
    except Exception:  # whatever it is, it is none
        return False
    return isinstance(first, tuple) and "repo_name" in first[1]


def _of_row(where: str, row: dict) -> Document | Bad:
    name, path, licence = (row.get(key) for key in ("repo_name", "path", "license"))
    if not isinstance(name, str) or not isinstance(path, str):
        return Bad(where, 'has no "repo_name" and "path"')
    if "content" not in row and "code" not in row:
        return Bad(where, 'has no "content"')
    revision = (row.get("ref") or "HEAD").removeprefix("refs/heads/")
    return Document(
        text=row.get("content") or row.get("code") or "",  # null, of a binary file
        id=f"{name}/{path}",
        url=f"https://github.com/{name}/blob/{revision}/{path}",
        licence=LICENCES.get(str(licence).lower(), licence),
        provenance={"path": path},
    )


def _of_checkout(path: Path, root: Path, licence: str | None) -> Document | Bad:
    name = path.relative_to(root).as_posix()
    text = ""  # of a file that the rules drop
    if name.endswith(ENDINGS) and licence in LICENCES.values():
        if path.stat().st_size > LARGEST:
            return Bad(name, f"is longer than {LARGEST:,} bytes")
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as e:
            return Bad(name, f"is not UTF-8: {e.reason} at byte {e.start}")
    return Document(text, id=f"{root.name}/{name}", licence=licence, provenance={"path": name})


@functools.lru_cache(1024)  # directories; their files come one after the other
def _licence_files(directory: Path) -> list[Path]:
    files = (file for file in directory.glob("*") if LICENCE_FILE.fullmatch(file.name))
    return sorted(file for file in files if file.is_file())


def _licence(directory: Path) -> str | None:
    """Return the licence of a directory by its files; of two that may both be chosen, the first.

    None where one of them is no one of LICENCES.
    """
    texts = [file.read_text(errors="replace") for file in _licence_files(directory)]
    found = [licence_of_text(text) for text in texts]
    return None if None in found else found[0]


def licence_of_text(text: str) -> str | None:
    """Return which of LICENCES a licence's text is, by SPDX, None where it is another."""
    folded = re.sub(r"\s+", " ", text)
    return next((licence for sentence, licence in TEXTS if re.search(sentence, folded)), None)


def not_permissive(document: Document) -> str | None:
    """Drop a file under another licence, or under none that is known."""
    return document.text if document.licence in LICENCES.values() else None


def of_another_kind(document: Document) -> str | None:
    """Drop a file whose name does not end as source code and its documentation do."""
    return document.text if document.provenance["path"].endswith(ENDINGS) else None


# A comment at the top of a file: a block, or lines that begin with the same sign.
BLOCKS = (r"/\*.*?\*/", r"<!--.*?-->", r"\{-.*?-\}", r"\(\*.*?\*\)", r"=begin\b.*?\n=end\b")
PREPROCESSOR = r"include|import|define|undef|if|ifdef|ifndef|else|elif|endif|pragma|error|line"
SIGNS = ("//", rf"\#(?!\s*(?:{PREPROCESSOR})\b)", "--", ";", "%", "!", "'", r"@?rem\b", r"dnl\b")
RUNS = [rf"(?:[ \t]*{sign}[^\n]*(?:\n|\Z))+" for sign in SIGNS]
COMMENT = re.compile(rf"(?is)\s*(?:{'|'.join((*BLOCKS, *RUNS))})[ \t]*\n?")
FIRST_LINES = re.compile(
    r"(?:\ufeff)?(?:#![^\n]*\n|<\?xml[^\n]*\?>\s*|<\?php\s|<!DOCTYPE[^>]*>\s*|"
    r"#[^\n]*coding[:=][^\n]*\n|#[^\n]*-\*-[^\n]*\n)*"
)
BOILERPLATE = re.compile(
    r"(?i)copyright|\(c\) \d{4}|©|licen[cs]ed? under|SPDX-License-Identifier|all rights reserved|"
    r"permission is hereby granted|redistribution and use|without warrant"
)


def without_header(document: Document) -> str:
    """Return a file without the comments at its top that are about copyright and licence."""
    first = FIRST_LINES.match(document.text)
    assert first  # it may be empty
    rest, kept = document.text[first.end() :], ""
    size = len(rest)
    while comment := COMMENT.match(rest):
        rest = rest[comment.end() :]
        kept += "" if BOILERPLATE.search(comment[0]) else comment[0]
    if len(kept + rest) == size:
        return document.text
    return first[0] + (kept + rest).lstrip("\n")


def long_lines(document: Document) -> str | None:
    """Drop a file with a line over LONGEST_LINE, as data and minified code have."""
    longest = max(map(len, document.text.splitlines()), default=0)
    return document.text if longest <= LONGEST_LINE else None


def long_lines_on_average(document: Document) -> str | None:
    """Drop a file with a mean line over LONGEST_MEAN_LINE."""
    found = document.text.splitlines()
    mean = sum(map(len, found)) / max(1, len(found))
    return document.text if mean <= LONGEST_MEAN_LINE else None


def few_alphanumeric(document: Document) -> str | None:
    """Drop a file that is mostly signs, or empty."""
    share = sum(map(str.isalnum, document.text)) / max(1, len(document.text))
    return document.text if share >= FEWEST_ALPHANUMERIC else None


SOURCE = Source(
    name="github",
    accepts=("",),
    read=read,
    steps=(
        *(of_another_kind, not_permissive, long_lines, long_lines_on_average, few_alphanumeric),
        without_header,
        ExactDuplicates(),
    ),
    rights="Under the Apache-2.0, BSD-2-Clause, BSD-3-Clause or MIT licence, as GitHub or the "
    "project's own file of it says; all four ask that the notice is kept with copies, and the url "
    "leads to it. Headers with the authors' names are removed, addresses in the code are not.",
)
