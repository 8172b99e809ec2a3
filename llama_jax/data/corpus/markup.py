"""HTML, wikitext, LaTeX, POD and reStructuredText as plain text; texts cleaned and cut."""

import html
import re

import trafilatura
from lxml import etree
from lxml import html as lxml_html


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


def plain_page(page: str) -> str:
    """Return the text of one page of the Apache manual, without what every page repeats."""
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


def clean_tex(tex: str) -> str:
    """Drop what precedes the first section, comments and bibliography; expand macros.

    Section 2.1 of the paper. Only macros without arguments are expanded, as in the paper.
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


def plain_pod(pod: str) -> str:
    """Return Perl's POD as plain text; indented paragraphs are code and stay as they are."""

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
    """Return Sphinx reStructuredText as plain text, examples kept."""
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
