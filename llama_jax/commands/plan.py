"""plan: whether an experiment fits a slice, and what it takes there."""

import argparse
import dataclasses
import json

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        dest="slices",
        metavar="SLICE",
        help="e.g. v5p:4x4x8, 2xv5e:16x16, v5litepod-64 or h100:64; may be repeated (default: "
        "execution.slice)",
    )
    parser.add_argument("--price", type=options.number(float, 0), help="of one chip for one hour")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, a list with one item a slice"
    )
    parser.add_argument(
        "--figure", type=options.local_path, help="draw memory and time into this .png or .svg"
    )
    parser.add_argument(
        "--search", action="store_true", help="find the best mesh, micro-batches and remat policy"
    )
    parser.add_argument(
        "--out", type=options.local_path, help="of --search: write the winner as an experiment file"
    )
    parser.add_argument(
        "--jobs", type=options.number(int, 1, 1024), help="of --search: compilers at a time"
    )
    parser.add_argument(
        "--compiles",
        type=options.number(int, 1),
        default=8,
        help="of --search: programs to compile for each slice at the most (default: 8)",
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.plan.experiment_file import write_experiment
    from llama_jax.plan.figure import check_name, draw
    from llama_jax.plan.search import search
    from llama_jax.plan.slices import plan_all
    from llama_jax.plan.text import lines, table

    if not args.search and (args.out or args.jobs):
        raise UserError("--out and --jobs belong to --search")
    if args.figure:
        check_name(args.figure)
    if args.search:
        found = search(
            args.experiment,
            args.overrides,
            args.slices,
            price=args.price,
            max_compiles=args.compiles,
            jobs=args.jobs,
        )
        plans = [p for p, _ in found]
        text = "\n".join([*table(plans), "(estimates, not measurements; the cheapest first)"])
        if args.out:
            write_experiment(args.out, *found[0])
    else:
        plans = plan_all(args.experiment, args.overrides, args.slices, args.price)
        text = "\n\n".join("\n".join(lines(p)) for p in plans)
    print(json.dumps([dataclasses.asdict(p) for p in plans], indent=2) if args.json else text)
    if args.figure:
        draw(plans, args.figure)
    return 0 if all(p.fits for p in plans) else 1
