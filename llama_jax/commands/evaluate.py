"""evaluate: held-out loss by source, beside n-gram models."""

import argparse

from llama_jax.commands import options


def arguments(parser: argparse.ArgumentParser) -> None:
    options.workdir(parser)


def run(args: argparse.Namespace) -> int:
    from llama_jax.data.prepare import ensure
    from llama_jax.evaluation.held_out import evaluate_run
    from llama_jax.run.checkpoint import open_run

    workdir, step, experiment = open_run(args.workdir, args.overrides)
    if status := ensure(experiment.data):
        return status
    evaluate_run(workdir, step, experiment)
    return 0
