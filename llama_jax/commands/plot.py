"""plot: the loss curves of a run, or of several."""

import argparse

from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        help="a run, finished or not, or a sweep; several are drawn into one picture",
    )
    parser.add_argument(
        "--out", metavar="FILE.png", help="(default: WORKDIR/loss.png, of several ./loss.png)"
    )


def run(args: argparse.Namespace) -> int:
    from llama_jax.place import place
    from llama_jax.run.curves_figure import plot_curves, runs_in
    from llama_jax.run.loss_figure import plot_losses

    if args.out and not args.out.endswith(".png"):
        raise UserError(f"--out: got {args.out!r}, expected a name in .png")
    workdirs = [place(text, "workdir") for text in args.workdirs]
    runs = [run for workdir in workdirs for run in runs_in(workdir)]
    if runs == workdirs[:1] and not args.out:
        print(plot_losses(runs[0]))
        return 0
    default = workdirs[0] / "loss.png" if len(workdirs) == 1 else "loss.png"
    print(plot_curves(runs, place(str(args.out or default), "--out")))
    return 0
