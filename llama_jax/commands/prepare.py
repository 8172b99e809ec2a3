"""prepare: a source's public dumps as cleaned documents, and a report of what was done."""

import argparse
import importlib
import json
import sys

from llama_jax.commands import options
from llama_jax.config import LLAMA_MIXTURE, UserError

SOURCES = [*(source for source, _ in LLAMA_MIXTURE), "corpus"]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", choices=SOURCES, help=", ".join(SOURCES))
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        type=options.local_path,
        metavar="PATH",
        help="dumps, or directories of them",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=options.local_path,
        metavar="CORPUS",
        help="CORPUS/SOURCE is written; of the source corpus, CORPUS",
    )
    parser.add_argument(
        "--models",
        type=options.local_path,
        metavar="DIR",
        help="models that rules of the source need",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        type=options.local_path,
        metavar="FILE",
        help="evaluation sets: documents that they are in are left out, and listed in hits.jsonl",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="RULE",
        help="leave a rule out, by its name in the report; may be repeated",
    )
    parser.add_argument(
        "--task-mb",
        type=options.number(float, 0),
        default=256.0,
        metavar="MB",
        help="files of a task, which become one file; a larger one is a task of its own "
        "(default: 256)",
    )
    parser.add_argument(
        "--most-bad",
        type=options.number(float, 0, 1),
        default=0.01,
        metavar="SHARE",
        help="of the input that may be unreadable before it ends with status 1 (default: 0.01)",
    )
    parser.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        default="local",
        help="where its tasks run (default: local)",
    )
    parser.add_argument(
        "--workers",
        type=options.number(int, 1),
        default=1,
        help="tasks at a time (default: 1); the documents do not depend on it",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for Slurm: an option of sbatch, partition=NAME and time=LIMIT at least",
    )


def run(args: argparse.Namespace) -> int:
    sbatch = _sbatch(args)
    try:
        from llama_jax.data.pipeline import executors, page, prepare, report
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("llama_jax"):
            raise
        raise UserError(
            f"needs {e.name}, which is in an environment of its own: run `make prepare` and "
            "call .venv-prepare/bin/llama-jax"
        ) from e
    source = importlib.import_module(f"llama_jax.data.sources.{args.source}").SOURCE
    task_bytes = round(args.task_mb * 1e6)
    plan = prepare.plan(
        *(source, args.input, args.output, args.models, {*args.without}, task_bytes),
        against=args.against,
    )
    if prepare.is_there(plan):
        print(f"{plan.final} is there already, of the same files, rules and models")
        return 0
    with prepare.working(plan):
        stages = prepare.stages(plan)
        if args.executor == "local":
            executors.run_locally(stages, plan.work, args.workers)
        elif args.executor == "ray":
            executors.run_with_ray(stages, plan.work, args.workers)
        elif jobs := executors.submit_to_slurm(stages, plan.work, args.workers, sbatch):
            print(
                f"submitted as jobs {' '.join(jobs)}; when they are done, give this command again"
            )
            return 0
        made = report.report(plan)
        _show(made)
        if made["bad"]["share"] > args.most_bad:
            files = ", ".join(made["bad"]["files"])
            print(
                f"llama-jax prepare: {made['bad']['share']:.2%} of the input is bad, more than "
                f"--most-bad {args.most_bad}: {files}; mend it, or raise --most-bad and give the "
                "command again",
                file=sys.stderr,
            )
            return 1
        prepare.write_reports(plan, json.dumps(made, indent=1), page.page(made))
        prepare.finish(plan)
    print(f"wrote {plan.final}: look through {plan.final}/report.html")
    return 0


def _show(made: dict) -> None:
    from rich.console import Console

    from llama_jax.data.pipeline import report

    console = Console(soft_wrap=True, highlight=False)
    console.print(report.table(made))
    for line in report.bad_lines(made):
        console.print(line, markup=False)


def _sbatch(args: argparse.Namespace) -> dict[str, str]:
    """Return the options of sbatch. Raises UserError for one that is none, or is missing."""
    given = {}
    for text in args.sbatch:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"--sbatch: got {text!r}, expected NAME=VALUE, such as partition=cpu")
        given[name] = value
    missing = [name for name in ("partition", "time") if name not in given]
    if args.executor == "slurm" and missing:
        raise UserError(f"--sbatch: Slurm wants {missing[0]} too: --sbatch {missing[0]}=VALUE")
    return given
