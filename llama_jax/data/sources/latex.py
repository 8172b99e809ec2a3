"""LaTeX source, cleaned: comments, macros, what precedes the first section, the bibliography."""

import re
from dataclasses import dataclass

MOST_EXPANDED = 2**22  # characters that the macros of one paper may become
DEEPEST = 200  # macros inside the arguments and the meanings of others

# What shows a % or a command as it stands.
LITERAL = (
    r"\\begin\{(?P<env>verbatim\*?|Verbatim|lstlisting|minted|alltt)\}[\s\S]*?\\end\{(?P=env)\}"
    r"|\\verb\*?(?P<bar>[^\w\s*])[^\n]*?(?P=bar)"
    r"|\\(?:url|href|path|nolinkurl)\s*\{[^{}]*\}"
    r"|\\[\\%]"
)
_LITERAL = re.compile(LITERAL)
_COMMENT = re.compile(
    rf"(?P<literal>{LITERAL})"
    r"|\\begin\{comment\}[\s\S]*?\\end\{comment\}[ \t]*\n?"
    r"|(?<![^\n])[ \t]*%[^\n]*(?:\n|\Z)"  # a line of its own
    r"|(?<![\s])%[^\n]*\n[ \t]*(?=[^\s\\%])"  # TeX joins what follows to the line
    r"|[ \t]*%[^\n]*"
)
_FALSE = re.compile(r"\\iffalse\b(?:(?!\\if)[\s\S])*?\\fi\b")

_SECTION = re.compile(r"\\(?:part|chapter|(?:sub){0,2}section|paragraph)\*?\s*[\[{]")
_BIBLIOGRAPHY = re.compile(
    r"\\begin\{(thebibliography|references|REFERENCES|bibdiv)\}[\s\S]*?(?:\\end\{\1\}|\Z)"
    r"|\\(?:nobibliography|bibliography|bibliographystyle|addbibresource)\*?\s*\{[^}]*\}"
    r"|\\printbibliography\b(?:\s*\[[^\]]*\])?"
    r"|\\(?:section|chapter)\*?\s*\{\s*(?i:references|bibliography)\s*\}"
    r"(?:(?!\\(?:section|chapter|appendix)\b)[\s\S])*"
)


def without_comments(tex: str) -> str:
    r"""Return LaTeX without its comments, which "\%" does not begin, nor a % in \verb or \url."""
    return _FALSE.sub("", _COMMENT.sub(lambda match: match["literal"] or "", tex))


def from_first_section(tex: str) -> str | None:
    """Return what begins at the first heading, None if there is none, and ends with the document.

    Headings are part, chapter, section and those below it, with a star too.
    """
    start = _SECTION.search(tex)
    if start is None:
        return None
    return re.split(r"\\end\s*\{document\}", tex[start.start() :], maxsplit=1)[0]


def without_bibliography(tex: str) -> str:
    """Return LaTeX without its list of references; an appendix that follows it is kept."""
    return _BIBLIOGRAPHY.sub("", tex)


@dataclass(frozen=True)
class Macro:
    """A definition: its meaning has #1 to #num_arguments in it."""

    meaning: str
    num_arguments: int = 0
    default: str | None = None  # of the first argument, which then stands in brackets


# Commands that make the document what it is: no abbreviations, even where an author redefines one.
STRUCTURE = {
    *("documentclass", "begin", "end", "part", "chapter", "section", "subsection", "appendix"),
    *("subsubsection", "paragraph", "subparagraph", "bibliography", "item", "caption", "label"),
    *("ref", "cite", "footnote", "input", "include", "maketitle", "title", "author", "abstract"),
}
_COMMAND = re.compile(r"\\(?:[A-Za-z@]+|[\s\S])")
_SPACE = re.compile(r"[ \t]*\n?[ \t]*")  # a blank line would end the paragraph
_NAME = re.compile(r"\*?\s*(?:\{\s*\\([A-Za-z@]+|.)\s*\}|\\([A-Za-z@]+|.))\s*")
_COUNT = re.compile(r"\[\s*(\d)\s*\]\s*")
_PARAMETERS = re.compile(r"([^{}\n]*)(?=\{)")
_LATEX = {
    *("newcommand", "renewcommand", "providecommand"),
    *("DeclareRobustCommand", "DeclareMathOperator"),
}
_TEX = {"def", "gdef", "edef", "xdef"}
_INTERNAL = re.compile(rf"\\(?:[A-Za-z]*@|(?:{'|'.join(sorted(_LATEX | _TEX))}|let)\b)")


def expanded(tex: str) -> str:
    r"""Return LaTeX with its author's macros expanded in place, and their definitions taken out.

    Those of \newcommand, \renewcommand, \providecommand, \DeclareRobustCommand, \def, \let and
    \DeclareMathOperator, with arguments, and a default of the first. Inside its own meaning a macro
    stays as it is. Those with delimited arguments, those with LaTeX's internals or a definition in
    them, and those that redefine STRUCTURE are not expanded. Raises ValueError for macros that
    become too much, or are too deep in each other.
    """
    return _Expansion().expand(tex, frozenset(), 0)


class _Expansion:
    """The macros of one document, which is read from left to right, as TeX does."""

    def __init__(self):
        self.macros: dict[str, Macro] = {}
        self.num_characters = 0  # that macros have become

    def expand(self, tex: str, inside: frozenset[str], depth: int) -> str:
        """Return `tex` expanded. inside: the macros whose meaning it is part of."""
        if depth > DEEPEST:
            raise ValueError(f"has macros inside one another, more than {DEEPEST} deep")
        groups, parts, position = _Groups(tex), [], 0
        while command := _COMMAND.search(tex, position):
            _append(parts, tex[position : command.start()])
            name, position = command[0][1:], command.end()
            if literal := _LITERAL.match(tex, command.start()):
                _append(parts, literal[0])
                position = literal.end()
            elif (end := self._define(name, groups, position)) is not None:
                position = end
            elif name in inside or not (use := self._use(name, groups, position)):
                _append(parts, command[0])
            else:
                macro, arguments, position = use
                arguments = [self.expand(argument, inside, depth + 1) for argument in arguments]
                meaning = self.expand(macro.meaning, inside | {name}, depth + 1)
                _append(parts, result := _substituted(meaning, arguments))
                self.num_characters += 16 + len(result)  # for nothing takes time, too
                if self.num_characters > MOST_EXPANDED:
                    raise ValueError(f"has macros that become over {MOST_EXPANDED:,} characters")
        _append(parts, tex[position:])
        return "".join(parts)

    def _use(self, name: str, groups: "_Groups", position: int) -> tuple | None:
        """Return (macro, its arguments, where they end), None for no macro or one that lacks some.

        position: after the macro's name.
        """
        macro = self.macros.get(name)
        if macro is None:
            return None
        arguments = []
        if macro.default is not None:
            given = groups.bracket(groups.after_space(position))
            arguments.append(macro.default if given is None else given[0])
            position = position if given is None else given[1]
        while len(arguments) < macro.num_arguments:
            found = groups.argument(groups.after_space(position))
            if found is None:
                return None
            arguments.append(found[0])
            position = found[1]
        if not macro.num_arguments and groups.tex.startswith("{}", position):
            position += 2  # which only ends the name
        return macro, arguments, position

    def _define(self, command: str, groups: "_Groups", position: int) -> int | None:
        """Note a definition and return where it ends, None if this is none.

        position: after the name of the command that may define another.
        """
        if command not in _LATEX | _TEX | {"let"}:
            return None
        tex = groups.tex
        named = _NAME.match(tex, position)
        if named is None:
            return None
        name, position = named[1] or named[2], named.end()
        count, default, delimited = 0, None, False
        if command in _TEX:
            parameters = _PARAMETERS.match(tex, position)
            if parameters is None:
                return None
            written = parameters[1].replace(" ", "")
            count, position = len(written) // 2, parameters.end()
            delimited = written != "".join(f"#{i}" for i in range(1, count + 1))
        elif command == "let":
            position = re.compile(r"=?\s*").match(tex, position).end()  # pyright: ignore[reportOptionalMemberAccess]
        elif found := _COUNT.match(tex, position):
            count, position = int(found[1]), found.end()
            if optional := groups.bracket(position):
                default, position = optional[0], groups.after_space(optional[1])
        body = groups.argument(position)
        if body is None:
            return None
        meaning, position = body
        if command == "DeclareMathOperator":
            meaning = rf"\operatorname{'*' * named[0].startswith('*')}{{{meaning}}}"
        macro = Macro(re.sub(r"\\xspace\b(\{\})?\s*$", "", meaning), count, default)
        if command == "let":
            macro = self.macros.get(meaning[1:], macro)
        internal = delimited or name in STRUCTURE or _INTERNAL.search(meaning)
        if internal or macro.meaning == r"\relax":
            self.macros.pop(name, None)
        elif command != "providecommand" or name not in self.macros:
            self.macros[name] = macro
        return position + len(re.compile(r"[ \t]*\n?").match(tex, position)[0])  # pyright: ignore[reportOptionalSubscript]


class _Groups:
    """What stands between braces in a text, found once for all of it."""

    def __init__(self, tex: str):
        self.tex = tex
        self.end: dict[int, int] = {}  # where a brace opens -> after the one that closes it
        opened = []
        for token in re.finditer(r"\\[\s\S]|[{}]", tex):
            if token[0] == "{":
                opened.append(token.start())
            elif token[0] == "}" and opened:
                self.end[opened.pop()] = token.end()

    def after_space(self, position: int) -> int:
        space = _SPACE.match(self.tex, position)
        assert space  # it may be empty
        return space.end()

    def argument(self, position: int) -> tuple[str, int] | None:
        """Return a macro's argument, a group or else a token, and where it ends."""
        if end := self.end.get(position):
            return self.tex[position + 1 : end - 1], end
        token = re.compile(r"\\(?:[A-Za-z@]+|[\s\S])|#\d|[^\s{}]").match(self.tex, position)
        return (token[0], token.end()) if token else None

    def bracket(self, position: int) -> tuple[str, int] | None:
        """Return what stands in the bracket that opens here, and where it ends, if one does."""
        if not self.tex.startswith("[", position):
            return None
        start = position = position + 1
        while position < len(self.tex) and self.tex[position] != "]":
            position = self.end.get(position, position + 1)
        return (self.tex[start:position], position + 1) if position < len(self.tex) else None


def _substituted(meaning: str, arguments: list[str]) -> str:
    parts: list[str] = []
    for index, piece in enumerate(re.split(r"#(\d|#)", meaning)):
        if index % 2 == 0:
            _append(parts, piece)
        elif piece == "#":
            _append(parts, "#")
        else:
            number = int(piece)
            # Beyond its own are those of a macro around it.
            known = 0 < number <= len(arguments)
            _append(parts, arguments[number - 1] if known else f"#{piece}")
    return "".join(parts)


def _append(parts: list[str], piece: str) -> None:
    r"""Add a piece, so that "\alpha" and "b" do not become the command "\alphab"."""
    if piece and parts and piece[0].isalpha() and re.search(r"\\[A-Za-z]+$", parts[-1][-40:]):
        parts.append(" ")
    if piece:
        parts.append(piece)
