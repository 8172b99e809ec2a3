"""LaTeX, cleaned: macros, comments, the first section, the bibliography."""

import pytest

from llama_jax.data.sources import latex

# ---- Macros

EXPANDED = {
    "no argument": (r"\newcommand{\a}{X}\a, \a{}b", "X, Xb"),
    "braces round the name or not": (r"\newcommand\a{X}\newcommand*{\b}{Y}\a\b", "XY"),
    "arguments": (
        r"\newcommand{\v}[2]{<#1|#2>}\v{a}{b} \v cd \v\alpha{e}",
        r"<a|b> <c|d> <\alpha|e>",
    ),
    "a default": (r"\newcommand{\d}[2][t]{d#2/d#1}\d{x} \d[s]{y}", "dx/dt dy/ds"),
    "a default with a bracket": (r"\newcommand{\d}[1][{]}]{<#1>}\d \d[a{]}b]", "<{]}> <a{]}b>"),
    "TeX's own": (r"\def\p#1#2{(#1,#2)}\p{a}{b}\gdef\q{Q}\q", "(a,b)Q"),
    "TeX's, delimited": (r"\def\p#1.#2{(#1,#2)}\p a.b", r"\p a.b"),
    "let": (r"\let\eps=\varepsilon\let\e\eps$\e x$", r"$\varepsilon x$"),
    "an operator": (
        r"\DeclareMathOperator*{\argmin}{arg\,min}\DeclareMathOperator{\tr}{tr}\argmin\tr",
        r"\operatorname*{arg\,min}\operatorname{tr}",
    ),
    "provided": (r"\newcommand{\a}{1}\providecommand{\a}{2}\a\providecommand{\b}{3}\b", "13"),
    "redefined": (r"\newcommand{\a}{1}\a\renewcommand{\a}{2}\a", "12"),
    "a command of LaTeX's, redefined": (
        r"\let\old\vec\renewcommand{\vec}[1]{\old{\mathbf{#1}}}\vec{x}",
        r"\vec{\mathbf{x}}",
    ),
    "nested": (r"\newcommand{\v}[1]{[#1]}\newcommand{\w}[1]{\v{#1!}}\w{\v{\w{a}}}", "[[[a!]]!]"),
    "one in its own meaning": (r"\def\a{x\b}\def\b{\a}\a", r"x\a"),
    "one that defines": (r"\newcommand{\make}[1]{\def\m{#1}}\make{Z}\m", r"\make{Z}\m"),
    "a letter after a command": (
        r"\newcommand{\m}{\mu}\newcommand{\q}[1]{\m#1}\q{b}",
        r"\mu b",
    ),
    "a longer name": (r"\newcommand{\a}{X}\ab \a b", r"\ab X b"),
    "too few arguments": (r"\newcommand{\v}[2]{#1#2}{\v{a}}", r"{\v{a}}"),
    "the section": (r"\renewcommand{\section}[1]{\bf #1}\section{S}", r"\section{S}"),
    "LaTeX's internals": (r"\def\a{\@ifstar{x}{y}}\a", r"\a"),
    "verbatim": (
        r"\newcommand{\a}{X}\verb|\a|\begin{verbatim}\a\end{verbatim}\a",
        r"\verb|\a|\begin{verbatim}\a\end{verbatim}X",
    ),
    "xspace": (r"\newcommand{\K}{\emph{K}\xspace}The \K data", r"The \emph{K} data"),
    "a group over lines": ("\\newcommand{\\a}[1]{%\n  (#1)}\n\\a{x\n\ny}", "%\n  (x\n\ny)"),
}


@pytest.mark.parametrize("case", EXPANDED)
def test_macros_are_expanded_in_place(case):
    tex, expected = EXPANDED[case]
    assert latex.expanded(tex) == expected


@pytest.mark.parametrize("last", ["xxxx", ""])
def test_macros_that_double_and_double_are_refused(last, monkeypatch):
    monkeypatch.setattr(latex, "MOST_EXPANDED", 100_000)
    names = [f"\\m{chr(97 + i)}" for i in range(26)]
    doubled = [f"\\def{a}{{{b}{b}}}" for a, b in zip(names, names[1:], strict=False)]
    with pytest.raises(ValueError, match="macros that become over 100,000 characters"):
        latex.expanded(f"{''.join(doubled)}\\def{names[-1]}{{{last}}}{names[0]}")


def test_macros_deep_in_each_other_are_refused():
    with pytest.raises(ValueError, match="more than 200 deep"):
        latex.expanded(r"\newcommand{\v}[1]{#1}" + r"\v{" * 300 + "}" * 300)


# ---- Comments

COMMENTS = {
    "at the end of a line": ("a % b\nc", "a\nc"),
    "that joins two lines": ("a%\n  b%% c\nd", "abd"),
    "before a blank line": ("a% b\n\nc", "a\n\nc"),
    "before a command": ("}%\n\\section{S}", "}\n\\section{S}"),
    "a line": ("a\n  % b\n%c\nd", "a\nd"),
    "at the end": ("a\n% b", "a\n"),
    "a percent sign": (r"5\% of \\% b", r"5\% of \\"),
    "an address": (r"\url{http://x/a%20b}% c", r"\url{http://x/a%20b}"),
    "code": ("\\verb|%d|\\begin{lstlisting}\n% a\n\\end{lstlisting}", None),
    "an environment": ("a\n\\begin{comment}\nb\n\\end{comment}\nc", "a\nc"),
    "never": ("a\\iffalse b \\fi c", "a c"),
}


@pytest.mark.parametrize("case", COMMENTS)
def test_comments_are_removed(case):
    tex, expected = COMMENTS[case]
    assert latex.without_comments(tex) == (tex if expected is None else expected)


# ---- What precedes the first section, and the bibliography


@pytest.mark.parametrize(
    "heading", [r"\section{S}", r"\section*{S}", r"\section[s]{S}", r"\chapter{S}", r"\section {S}"]
)
def test_what_precedes_the_first_section_goes(heading):
    tex = (
        f"\\title{{T}}\\sectionmark abstract\n{heading}\ntext\\section{{B}}\\end{{document}}\nrest"
    )
    assert latex.from_first_section(tex) == f"{heading}\ntext\\section{{B}}"


def test_a_letter_has_no_section():
    assert latex.from_first_section(r"\begin{document}Text.\end{document}") is None


@pytest.mark.parametrize(
    "bibliography",
    [
        "\\begin{thebibliography}{9}\n\\bibitem{a} A. \\end{thebibliography}",
        r"\bibliographystyle{plain}\bibliography{a,b}",
        r"\printbibliography[heading=none]",
        "\\section*{References}\nA. B, 1905.",
        r"\begin{references}\reference{a}\end{references}",
    ],
)
def test_the_bibliography_goes_and_an_appendix_stays(bibliography):
    tex = latex.without_bibliography(f"a \\cite{{a}}\n{bibliography}\n\\appendix\nb")
    assert tex.split() == ["a", r"\cite{a}", r"\appendix", "b"]


def test_a_bibliography_without_an_end_goes_to_the_end():
    assert latex.without_bibliography("a\\begin{thebibliography}{9}\\bibitem{a}") == "a"
