"""fit: scaling laws of a table of runs."""

import argparse
from pathlib import Path

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        type=options.local_path,
        metavar="RESULTS.csv",
        help="a row a run, or a row a point",
    )
    parser.add_argument("--n", metavar="COLUMN", help="parameters (default: N if there is one)")
    parser.add_argument(
        "--d", metavar="COLUMN", help="training tokens (default: D if there is one)"
    )
    parser.add_argument(
        "--flops", metavar="COLUMN", help="FLOPs (default: C if there is one, or 6ND)"
    )
    parser.add_argument("--loss", metavar="COLUMN", default="loss", help="(default: loss)")
    parser.add_argument(
        "--run",
        metavar="COLUMN",
        default="run",
        dest="run_column",
        help="which training curve a row is a point of (default: run, if there is one)",
    )
    parser.add_argument(
        "--min-tokens-per-param",
        type=options.number(float, 0),
        default=0.0,
        metavar="X",
        help="drop others",
    )
    parser.add_argument(
        "--bootstraps",
        type=options.number(int, 2, 1_000_000),
        default=1000,
        help="for intervals (default: 1000)",
    )
    parser.add_argument(
        "--seed", type=options.number(int, 0), default=0, help="of the bootstraps (default: 0)"
    )
    parser.add_argument(
        "--out", type=options.local_path, help="for laws.json and figures (default: runs/NAME)"
    )
    parser.add_argument("--json", action="store_true", help="print what laws.json holds")


def run(args: argparse.Namespace) -> int:
    import jax
    from etils import epath

    from llama_jax.run.workdir import write_whole
    from llama_jax.scaling import results
    from llama_jax.scaling.figures import draw_fit
    from llama_jax.scaling.fit import fit as fit_points
    from llama_jax.scaling.fit import to_json
    from llama_jax.scaling.tables import as_json, print_fit

    jax.config.update("jax_platforms", "cpu")  # float64, which a TPU has not
    columns = results.Columns(args.n, args.d, args.flops, args.loss, args.run_column)
    data = results.read(args.table, columns, args.min_tokens_per_param)
    found = fit_points(data, str(args.table), args.bootstraps, args.seed)
    out = args.out or Path("runs") / args.table.stem
    laws = as_json(to_json(found))
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_fit(found, out)
        write_whole(epath.Path(out / "laws.json"), laws)
    except OSError as e:
        raise UserError(f"--out: cannot write {str(e.filename or out)!r}: {e.strerror or e}") from e
    if args.json:
        print(laws)
    else:
        print_fit(found)
        print(f"wrote {out}/laws.json and figures")
    return 0
