"""show: what an experiment amounts to."""

import argparse
from pathlib import Path

from llama_jax.commands import options
from llama_jax.experiment import load


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)


def run(args: argparse.Namespace) -> int:
    from llama_jax.show import show_experiment

    show_experiment(load(args.experiment, args.overrides), Path(args.experiment).stem)
    return 0
