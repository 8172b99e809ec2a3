"""plot: the loss curves of a run."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="a run, finished or not")


def run(args: argparse.Namespace) -> int:
    from etils import epath

    from llama_jax.run.loss_figure import plot_losses

    print(plot_losses(epath.Path(args.workdir)))
    return 0
