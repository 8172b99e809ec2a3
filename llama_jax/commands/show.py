"""show: what an experiment amounts to, as a table."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llama_jax.commands import options
from llama_jax.config import Experiment
from llama_jax.experiment import load
from llama_jax.flops import model_flops_per_token, num_params


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)


def run(args: argparse.Namespace) -> int:
    print_experiment(load(args.experiment, args.overrides), Path(args.experiment).stem)
    return 0


def print_experiment(experiment: Experiment, name: str) -> None:
    """Print parameters, tokens, steps, FLOPs, batch, mesh and the learning rate."""
    model, data, run = experiment.model, experiment.data, experiment.run
    execution, upkeep = experiment.execution, experiment.upkeep
    params = num_params(model)
    tokens_per_step = data.batch_size * data.seq_len
    tokens = tokens_per_step * run.num_steps
    flops = model_flops_per_token(model, data.seq_len) * tokens
    mesh = execution.mesh
    ways = f"replica {mesh.replica} x fsdp {mesh.fsdp or 'all others'} x tensor {mesh.tensor}"
    devices = mesh.replica * mesh.fsdp * mesh.tensor or "the"

    table = Table(title=name, show_header=False, title_justify="left", title_style="bold")
    rows = {
        "parameters": f"{params:,}",
        "shape": (
            f"{model.num_layers} layers, width {model.embed_dim}, MLP {model.mlp_dim}, "
            f"{model.num_heads} heads of {model.head_dim}, {model.kv_heads} KV heads, "
            f"vocabulary {model.vocab_size:,}, {'tied' if model.tie_embeddings else 'untied'} head"
        ),
        "numerics": f"float32 parameters, {model.compute_dtype} compute, remat {execution.remat}",
        "batch": (
            f"{data.batch_size:,} rows x {data.seq_len:,} = {tokens_per_step:,} tokens"
            f" in {execution.micro_batches} "
            f"micro-batch{'es' if execution.micro_batches > 1 else ''}"
        ),
        "steps": f"{run.num_steps:,}",
        "tokens": f"{tokens:,}",
        "tokens per parameter": f"{tokens / params:.1f}",
        "FLOPs": f"{flops:.3e} (6ND: {6 * params * tokens:.3e})",
        "mesh": (
            f"{ways} = {devices} devices{'' if mesh.fsdp else ' there are'}"
            f"{', sequence-parallel' if mesh.sequence_parallel else ''}"
        ),
        "mixture": ", ".join(f"{source} {rate:.1%}" for source, rate in data.mixture),
        "optimizer": (
            f"AdamW ({experiment.optimizer.b1}, {experiment.optimizer.b2}), "
            f"weight decay {experiment.optimizer.weight_decay} except on names with "
            f"{', '.join(experiment.optimizer.no_decay)}, clip {experiment.optimizer.clip_norm}"
        ),
        "kept": (
            f"the last {upkeep.keep_last} checkpoints, one every {upkeep.checkpoint_every:,} steps"
            + (f", and every {upkeep.keep_every:,}th" if upkeep.keep_every else "")
        ),
    }
    for label, value in rows.items():
        table.add_row(label, value)
    Console(markup=False).print(table)
    _print_learning_rate(experiment, tokens_per_step)


def _print_learning_rate(experiment: Experiment, tokens_per_step: int) -> None:
    from llama_jax.optimizer import learning_rate_schedule

    curve = Table(title="learning rate", title_justify="left")
    learning_rate = learning_rate_schedule(experiment.optimizer, experiment.run.num_steps)
    warmup, last = experiment.optimizer.warmup_steps, experiment.run.num_steps
    steps = sorted({0, warmup, *(warmup + (last - warmup) * k // 4 for k in range(1, 5))})
    curve.add_column("step", justify="right")
    curve.add_column("tokens", justify="right")
    curve.add_column("rate", justify="right")
    for step in steps:
        curve.add_row(
            f"{step:,}", f"{step * tokens_per_step:,}", f"{float(learning_rate(step)):.3e}"
        )
    Console(markup=False).print(curve)
