"""sweep: the experiments of a file, each trained once."""

import argparse
import sys
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError

EXPIRY = 60.0  # of a lease, in seconds


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="with get_sweep(), or the name of one that comes with llama_jax, such as "
        "sweeps/cpu_isoflop",
    )
    options.overrides(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what it is and what is done"
    )
    parser.add_argument("--slice", metavar="SLICE", help="of --dry-run: estimate time for it")
    parser.add_argument(
        "--price", type=options.positive(), help="of --slice: dollars for a chip and hour"
    )
    parser.add_argument(
        "--workdir", help="a directory or bucket, shared by all machines (default: runs/NAME)"
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="begin with every Nth run from the Ith, then take what the other N-1 machines left",
    )
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument(
        "--expiry",
        type=options.number(float, 4),
        metavar="SECONDS",
        help=f"without a sign of life, after which a run is taken over (default: {EXPIRY:g})",
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.hardware import parse_slice
    from llama_jax.place import place
    from llama_jax.sweeps import board
    from llama_jax.sweeps import sweep as room

    if args.slice is not None and not args.dry_run or args.price is not None and not args.slice:
        raise UserError("--slice belongs to --dry-run, and --price to --slice")
    for option, value in (
        ("--retry", args.retry or None),
        ("--shard", args.shard),
        ("--expiry", args.expiry),
    ):
        if args.dry_run and value is not None:
            raise UserError(f"{option} does nothing with --dry-run, which trains nothing")
    workdir = place(args.workdir or f"runs/{Path(args.file).stem}", "--workdir")
    runs = room.load(args.file, args.overrides, workdir)
    if args.dry_run:
        board.print_plan(runs, parse_slice(args.slice) if args.slice else None, args.price)
        return 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f"--workdir: cannot write to {str(workdir)!r}: {reason}") from e
    if args.retry:
        room.retry(runs)
    shown = board.Board(runs)
    try:
        room.work(runs, workdir, args.shard or (0, 1), args.expiry or EXPIRY, shown.update)
    finally:
        shown.close()
    failed = [f"{r.name}: {room.state(r).note}" for r in runs if room.state(r).status == "failed"]
    lacking = room.unreadable(runs)
    for line in (*(f"failed: {line}" for line in failed), *(f"left out: {x}" for x in lacking)):
        print(line, file=sys.stderr)
    print(f"wrote {workdir}/results.csv")
    return 1 if failed or lacking else 0


def shard(text: str) -> tuple[int, int]:
    """Parse 1/3 as (0, 3). argparse names the option when it is refused."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N, e.g. 1/3")
    return int(i) - 1, int(n)
