"""The report of a prepared source: what came in, what rules did, what was bad, what came out."""

import dataclasses
import gzip
import importlib.metadata
import itertools
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from llama_jax import __version__
from llama_jax.data.pipeline import contamination
from llama_jax.data.pipeline.prepare import Plan
from llama_jax.data.pipeline.tally import EXAMPLES, Tally, shown, total


def report(plan: Plan) -> dict[str, Any]:
    """Return the report of a plan whose documents are finished. It depends on these alone, and not
    on how many workers made them."""
    tallies = plan.work / "tallies"
    ranks = range(len(plan.groups))
    read = total(tallies / f"read/{rank:05}.json" for rank in ranks)
    steps, bad = [], {file: list(found) for file, found in read.bad.items()}
    names = [name for name, _ in plan.steps] + [contamination.NAME] * bool(plan.against)
    for number, name in enumerate(names):
        tally = total(tallies / f"{number}/{rank:05}.json" for rank in ranks)
        steps.append({"name": name, **_figures(tally)})
        for file, (count, first) in tally.bad.items():
            known = bad.setdefault(file, [0, []])
            bad[file] = [known[0] + count, (known[1] + first)[:EXAMPLES]]
    last = steps[-1] if steps else {"documents_out": read.documents_in, "bytes_out": read.bytes_in}
    num_bad = sum(count for count, _ in bad.values())
    finished = sorted((plan.work / "finished").glob("*.jsonl.gz"))
    return {
        "source": plan.source.name,
        "rights": plan.source.rights,
        "software": {
            "llama_jax": __version__,
            "datatrove": importlib.metadata.version("datatrove"),
        },
        "request": plan.request(),
        "input": {
            "files": len(plan.files),
            "bytes": sum(size for _, _, size in plan.files),
            "files_of_other_kinds": plan.left_out,
        },
        "read": {"documents": read.documents_in, "bytes": read.bytes_in},
        "steps": steps,
        "bad": {
            "pieces": num_bad,
            "share": num_bad / max(num_bad + read.documents_in, 1),
            "files": {
                file: {"pieces": count, "first": first} for file, (count, first) in bad.items()
            },
        },
        "output": {
            "files": len(finished),
            "documents": last["documents_out"],
            "bytes": last["bytes_out"],
            "bytes_compressed": sum(path.stat().st_size for path in finished),
        },
        "examples": _examples(finished),
    }


def _figures(tally: Tally) -> dict[str, Any]:
    figures = dataclasses.asdict(tally)
    num_bad = sum(count for count, _ in figures.pop("bad").values())
    examples = {"examples": figures.pop("dropped"), "rewritten": figures.pop("rewritten")}
    dropped = tally.documents_in - tally.documents_out - num_bad
    return figures | {"bad": num_bad, "dropped": dropped} | examples


def _examples(finished: list[Path]) -> list[dict[str, Any]]:
    """Return the first finished document of each of some files, cut."""
    examples = []
    for path in finished:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in itertools.islice(lines, 2):
                document = json.loads(line)
                examples.append(document | {"text": shown(document["text"])})
        if len(examples) >= 2 * EXAMPLES:
            break
    return examples


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table of its steps."""
    shown = Table(title=f"{report['source']}: documents, and MB of text", title_justify="left")
    shown.add_column("step", no_wrap=True)
    for heading in ("in", "dropped", "bad", "changed", "out", "MB"):
        shown.add_column(heading, justify="right")
    read_bad = report["bad"]["pieces"] - sum(step["bad"] for step in report["steps"])
    read = report["read"]
    shown.add_row("read", "", "", f"{read_bad:,}", "", f"{read['documents']:,}", mb(read["bytes"]))
    for step in report["steps"]:
        names = ("documents_in", "dropped", "bad", "changed", "documents_out")
        counts = [f"{step[name]:,}" for name in names]
        shown.add_row(step["name"], *counts, mb(step["bytes_out"]))
    return shown


def mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f}"


def bad_lines(report: dict[str, Any]) -> list[str]:
    """Return a line for each file in which something could not be read."""
    return [
        f"bad: {file}: {found['pieces']:,} of it, first {found['first'][0]['where']}: "
        f"{found['first'][0]['reason']}"
        for file, found in report["bad"]["files"].items()
    ]
