"""doctor: what may be wrong with the hosts of a pod, before JAX takes their chips."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from llama_jax.commands import options
from llama_jax.loading import load
from llama_jax.place import place


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="whose token store is read, and compared between the hosts",
    )
    options.overrides(parser)
    parser.add_argument("--workdir", help="which is written to and read")
    options.multihost(parser)


def run(args: argparse.Namespace) -> int:
    from llama_jax.guards import doctor, job

    experiment = load(args.experiment, args.overrides) if args.experiment else None
    workdir = place(args.workdir, "workdir") if args.workdir else None
    here = job.Job("", 1, 0, None) if args.multihost is None else job.find(args.multihost)
    facts = doctor.examine(experiment, workdir)
    say = Console(file=sys.stderr, markup=False, highlight=False, soft_wrap=True).print
    hosts, problems = doctor.together(here, facts, say)
    if hosts:
        _print(hosts)
    for problem in problems:
        print(f"llama-jax doctor: {problem}", file=sys.stderr)
    if not problems:
        print(f"nothing is wrong with {here.processes} host{'s' * (here.processes > 1)}")
    return 2 if problems else 0


def _print(hosts: list[dict]) -> None:
    from llama_jax.guards.doctor import EQUAL

    names = (name for name in EQUAL if name != "experiment" and name in hosts[0])
    same = [n for n in names if all(host.get(n) == hosts[0][n] for host in hosts)]
    console = Console(markup=False, highlight=False)
    console.print("on all: " + ", ".join(f"{name} {hosts[0][name]}" for name in same))
    table = Table()
    for heading in ("host", "chips", "disk", "memory", "clock", "workdir"):
        table.add_column(heading, overflow="fold")
    for host in hosts:
        table.add_row(
            host["host"],
            str(host["chips"]),
            f"{host['disk'] / 2**30:.0f} GiB free",
            f"{host['memory'] / 2**30:.0f} GiB free",
            f"{host['skew']:+.2f} s",
            f"{host['write_ms']:.0f} ms" if "write_ms" in host else "",
        )
    console.print(table)
