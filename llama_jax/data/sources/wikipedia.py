"""Wikipedia: the articles of a pages-articles dump, https://dumps.wikimedia.org.

Paper, section 2.1: dumps of June to August 2022 in twenty languages of Latin or Cyrillic script;
hyperlinks, comments and other formatting boilerplate removed. What counts as that follows the
script of Hugging Face's `wikipedia`, which RedPajama, the open recipe, took its text from:
references, tables, templates, files and categories go, and the words of links stay.
"""

# pyright: reportMissingImports=false

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from llama_jax.data.sources.lines import open_binary
from llama_jax.data.sources.source import Bad, Document, Source
from llama_jax.data.sources.xml_elements import elements

# Paper, section 2.1.
LANGUAGES = set("bg ca cs da de en es fr hr hu it nl pl pt ro ru sl sr sv uk".split())
VERSION_4 = "2023-06-07"  # from when on what is written is under version 4.0 of CC BY-SA
ARTICLE = "0"  # a namespace; others are talk, users, templates and the like
FILE, CATEGORY, MEDIA = "6", "14", "-2"  # namespaces; a link to one shows no words

# Tags that are no text, and those whose text is as it stands.
REMOVED = {
    *("ref", "references", "table", "gallery", "timeline", "imagemap", "score", "hiero", "graph"),
    *("templatestyles", "style", "script", "indicator", "section", "mapframe", "maplink"),
}
VERBATIM = {"pre", "syntaxhighlight", "source", "code", "nowiki", "math", "chem"}
KEPT_SPACE = "\ue000"  # stands for a space of theirs while others are closed up
_FILE = re.compile(r"(?i):.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gv]|webm|pdf|djvu|mid|wav|mp3)$")
_ELSEWHERE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?:|simple:")  # the article in another language


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield each page of a dump, .xml or .xml.bz2, in one stream or in many, as wikitext.

    Raises what reading the file raises.
    """
    named = re.match(r"([a-z]+)wiki-", path.name)
    language, hidden = named[1] if named else None, ["File", "Image", "Media", "Category"]
    link = _link_to(hidden)
    with open_binary(path) as file:
        for element in elements(file, "siteinfo", "page"):
            if isinstance(element, Bad):
                yield element
            elif element.tag == "siteinfo":
                wiki = element.findtext("dbname", "")
                language = wiki.removesuffix("wiki") if wiki.endswith("wiki") else language
                spaces = element.iter("namespace")
                own = [
                    space.text for space in spaces if space.get("key") in (FILE, CATEGORY, MEDIA)
                ]
                link = _link_to([*hidden, *filter(None, own)])
            else:
                yield _page(element, language, link)


def _link_to(names: list[str]) -> re.Pattern[str]:
    """Return what begins a link to a page of these namespaces."""
    either = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in names)
    return re.compile(rf"(?i)\[\[\s*(?:{either})\s*:")


def _page(page: Element, language: str | None, link: re.Pattern[str]) -> Document | Bad:
    title, number = page.findtext("title"), page.findtext("id")
    if not title or not number:
        return Bad(f"page {title or number}", "has no title or no id")
    date, address = page.findtext("revision/timestamp"), title.replace(" ", "_")
    return Document(
        text=link.sub("[[File:", page.findtext("revision/text") or ""),
        id=f"{language}/{number}" if language else number,
        url=f"https://{language}.wikipedia.org/wiki/{address}" if language else None,
        licence="CC-BY-SA-4.0" if date and date >= VERSION_4 else "CC-BY-SA-3.0",
        date=date,
        provenance={
            "title": title,
            "language": language,
            "namespace": page.findtext("ns", ARTICLE),
            "redirect": page.find("redirect") is not None,
        },
    )


def in_another_language(document: Document) -> str | None:
    """Drop a page of a Wikipedia outside LANGUAGES, where the dump says which it is."""
    language = document.provenance["language"]
    return document.text if language is None or language in LANGUAGES else None


def no_article(document: Document) -> str | None:
    """Drop a page of another namespace, and a redirect."""
    provenance = document.provenance
    article = provenance.pop("namespace") == ARTICLE and not provenance.pop("redirect")
    return document.text if article else None


def without_markup(document: Document) -> str | None:
    """Return an article's title and text, and drop one of which nothing else is left."""
    import mwparserfromhell

    sections: list[list] = [[0, "", []]]  # level, heading, parts of the text
    # Unbalanced quotes for italics would have it take what they are in for plain text.
    for node in mwparserfromhell.parse(document.text, skip_style_tags=True).nodes:
        if isinstance(node, mwparserfromhell.nodes.Heading):
            sections.append([node.level, _plain(node.title).strip(), []])
        else:
            sections[-1][2].append(_plain(node))
    kept: list[str] = []
    below = 0  # level of the section that was kept last, of those that follow
    for level, heading, parts in reversed(sections):
        text = _tidy("".join(parts))
        if not text and below <= level:
            continue  # a heading of what was removed
        kept += [text, heading] if text else [heading]
        below = level
    text = "\n\n".join(filter(None, reversed(kept)))
    return f"{document.provenance['title']}\n\n{text}" if text else None


def _plain(node: Any) -> str:
    """Return the words of a node of wikitext, or of several."""
    from mwparserfromhell import nodes
    from mwparserfromhell.wikicode import Wikicode

    if isinstance(node, Wikicode):
        return "".join(map(_plain, node.nodes))
    if isinstance(node, nodes.Text):
        return re.sub(r"''+", "", str(node))
    if isinstance(node, nodes.HTMLEntity):
        return node.normalize()
    if isinstance(node, nodes.Wikilink):
        title = str(node.title).strip()
        if title.startswith("File:") or _FILE.search(title):
            return ""
        if node.text is None:
            return "" if _ELSEWHERE.match(title) else title.removeprefix(":")
        return _plain(node.text)
    if isinstance(node, nodes.ExternalLink):
        return "" if node.title is None else _plain(node.title)
    if isinstance(node, nodes.Tag):
        return _plain_tag(node)
    return ""  # a template, its argument, or a comment


def _plain_tag(node: Any) -> str:
    tag = str(node.tag).strip().lower()
    if node.wiki_markup in ("*", "#"):
        return "*"
    if tag == "br":
        return "\n"
    if tag in REMOVED or node.contents is None:
        return ""
    if tag not in VERBATIM:
        return _plain(node.contents)
    text = str(node.contents).replace(" ", KEPT_SPACE)
    return f"${text.strip()}$" if tag in ("math", "chem") else text


def _tidy(text: str) -> str:
    """Return text without what the removed leaves behind: empty brackets, spaces, blank lines."""
    text = re.sub(r"__[A-Z]+__", "", text.replace("\u00a0", " "))
    text = re.sub(r"\(\s*(?:[,;:/–]\s*)+", "(", text)
    text = re.sub(r"[ \t]*\(\s*\)", "", text)
    text = re.sub(r"\([ \t]+|[ \t]+\)", lambda match: match[0].strip(), text)
    text = re.sub(r"(?m)^[ \t]*(?:\||\{\|).*$", "", text)  # of a table that is not well-formed
    text = re.sub(r"[ \t]+([,.;])(?=\s|\Z)", r"\1", text)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    text = re.sub(r"(?m)^\*+$\n?", "", text)
    text = re.sub(r"(?m)^(\*+)[ \t]*(?=\S)", r"\1 ", text)
    text = re.sub(r"(?m)^ (?=\S)", "", text)  # behind a colon, which indents
    text = re.sub(r"(?<=\S) {2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip().replace(KEPT_SPACE, " ")


SOURCE = Source(
    name="wikipedia",
    accepts=(".xml", ".bz2"),  # ...xml-p1p41242.bz2, too
    read=read,
    steps=(in_another_language, no_article, without_markup),
    rights="Under CC BY-SA, version 3.0 or, what was written since June 2023, 4.0; both ask for "
    "attribution, and the url leads to the authors. Articles are about public knowledge, living "
    "persons too, under Wikipedia's own rules for them: nothing more is removed.",
)
