"""The report as a page of HTML that needs nothing else, to look through."""

import html
from collections.abc import Iterable
from typing import Any

from llama_jax.data.pipeline.report import mb

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .75rem }
th { border-bottom: 1px solid #888; text-align: left } td.n { text-align: right }
pre { background: #8881; overflow-x: auto; padding: .75rem; white-space: pre-wrap }
.where { color: #888 } summary { cursor: pointer }
"""


def page(report: dict[str, Any]) -> str:
    """Return the page."""
    given, read, bad, out = (report[name] for name in ("input", "read", "bad", "output"))
    rows = [("read", "", "", "", read["documents"], mb(read["bytes"]))]
    for step in report["steps"]:
        counts = [step[name] for name in ("documents_in", "dropped", "changed", "documents_out")]
        rows.append((step["name"], *counts, mb(step["bytes_out"])))
    heads = ("step", "documents in", "dropped", "changed", "documents out", "MB out")
    parts = [
        f"<h1>{_text(report['source'])}</h1>",
        f"<p>{given['files']:,} files of {mb(given['bytes'])} MB became {out['documents']:,} "
        f"documents of {mb(out['bytes'])} MB of text, {mb(out['bytes_compressed'])} MB compressed. "
        f"{given['files_of_other_kinds']:,} files of other kinds were left out.</p>",
        f"<p>{_text(report['rights'])}</p>",
        _table(heads, rows),
        f"<h2>Bad input</h2><p>{bad['pieces']:,} pieces, {bad['share']:.2%}.</p>",
        _bad(bad["files"]),
        "<h2>What each step did</h2>",
        *(_step(step) for step in report["steps"]),
        "<h2>Documents</h2>",
        *(_example(document, document["text"]) for document in report["examples"]),
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>{_text(report["source"])}</title>'
    return f"{head}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n"


def _step(step: dict[str, Any]) -> str:
    dropped = [_example(example, example["text"]) for example in step["examples"]]
    rewritten = [
        f"{_example(example, example['before'])}<p>became</p><pre>{_text(example['after'])}</pre>"
        for example in step["rewritten"]
    ]
    kinds = [("dropped", dropped), ("changed", rewritten)]
    return "\n".join(
        f"<details><summary>{_text(step['name'])}: {step[kind]:,} {kind}</summary>"
        f"{''.join(examples)}</details>"
        for kind, examples in kinds
    )


def _example(document: dict[str, Any], text: str) -> str:
    where = " ".join(str(document[key]) for key in ("id", "url") if document.get(key))
    return f'<p class="where">{_text(where)}</p><pre>{_text(text)}</pre>'


def _bad(files: dict[str, Any]) -> str:
    rows = [
        (file, found["pieces"], "; ".join(f"{x['where']}: {x['reason']}" for x in found["first"]))
        for file, found in files.items()
    ]
    return _table(("file", "pieces", "first"), rows) if rows else ""


def _table(heads: Iterable[str], rows: Iterable[tuple]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    lines = [
        "".join(
            f'<td class="n">{cell:,}</td>' if isinstance(cell, int) else f"<td>{_text(cell)}</td>"
            for cell in row
        )
        for row in rows
    ]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _text(text: str) -> str:
    return html.escape(str(text))
