"""evaluate: held-out loss by source, beside n-gram models."""

import argparse
import sys

from llama_jax.commands import options


def arguments(parser: argparse.ArgumentParser) -> None:
    options.workdir(parser)


def run(args: argparse.Namespace) -> int:
    from llama_jax.data import store
    from llama_jax.evaluation.held_out import print_losses
    from llama_jax.opened import open_trained
    from llama_jax.run.checkpoint import read_meta
    from llama_jax.run.workdir import locate

    workdir, step = locate(args.workdir)
    model = open_trained(args.workdir, args.overrides)
    losses, data = model.held_out_losses(), model.experiment.data
    if store.digest(data) != read_meta(workdir, step).origin.data_digest:
        text = f"data.store: {data.store} is not the one that {workdir} was trained on"
        print(f"llama-jax evaluate: {text}", file=sys.stderr)
    print_losses(f"{workdir}@{step}", losses, model.experiment)
    return 0
