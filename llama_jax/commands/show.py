"""show: what an experiment amounts to, or where a run is and what its time went into."""

import argparse
import datetime
import math
from pathlib import Path

from etils import epath
from rich.console import Console
from rich.table import Table

from llama_jax.commands import options
from llama_jax.config import Experiment, UserError
from llama_jax.experiment import IDENTITY, changes, from_json
from llama_jax.flops import model_flops_per_token, num_params
from llama_jax.loading import load
from llama_jax.place import place
from llama_jax.plain_file import plain

LAST_EVENTS = 5  # of an attempt, that are shown
PAPER = ("llama_7b", "llama_13b", "llama_33b", "llama_65b")  # of experiments/
# What a result depends on, in a few words. Not data.store, which is a place.
MEANINGS = {
    "model.num_layers": "depth",
    "model.embed_dim": "width of the residual stream",
    "model.num_heads": "query heads of a layer",
    "model.num_kv_heads": "fewer key and value heads than query heads: grouped attention",
    "model.mlp_dim_override": "width of the MLP, in place of 8/3 of embed_dim",
    "model.vocab_size": "tokens that are told apart: losses a token do not compare",
    "model.norm_eps": "what keeps RMSNorm from dividing by 0",
    "model.rope_theta": "base of the rotary wavelengths",
    "model.tie_embeddings": "the head is the embedding table, which saves its parameters",
    "model.init_std": "of initial weights; the paper does not state it",
    "model.compute_dtype": "what is multiplied in; parameters are float32",
    "data.mixture": "share of tokens by source",
    "data.corpus": "the text",
    "data.sources": "where the text of a source lies, and in which column",
    "data.held_out": "share of documents held out where there are no validation files",
    "data.tokenizer": "how text becomes tokens",
    "data.seq_len": "tokens that can see each other",
    "data.batch_size": "rows in a step",
    "data.seed": "the order of the data",
    "data.attend_across_documents": "whether a token sees the documents before its own",
    "data.damaged_rows": "rows that may be left out where the store cannot be read",
    "optimizer.peak_lr": "learning rate after warm-up",
    "optimizer.warmup_steps": "steps up to the peak",
    "optimizer.final_lr_ratio": "share of the peak at the end of the cosine",
    "optimizer.b1": "memory of AdamW's mean gradient",
    "optimizer.b2": "memory of AdamW's mean square",
    "optimizer.eps": "what keeps AdamW from dividing by 0; the paper does not state it",
    "optimizer.weight_decay": "pull of the weights to 0, times the learning rate",
    "optimizer.no_decay": "names of parameters without that pull",
    "optimizer.clip_norm": "longest gradient",
    "run.num_steps": "with the batch, the tokens trained on",
    "run.gradient_dtype": "of the sum over micro-batches",
    "run.seed": "the initial weights",
    "run.on_spike": "what is done about a loss that jumps, or is no number",
    "run.spike_deviations": "standard deviations above the mean that are a jump",
    "init": "weights to start from, in place of random ones",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="EXPERIMENT|WORKDIR",
        help="a file such as experiments/quickstart.py, or the name of one that comes with "
        "llama_jax, such as quickstart; or a run",
    )
    options.overrides(parser)


def run(args: argparse.Namespace) -> int:
    if args.what.startswith("gs:") or Path(args.what).is_dir():
        if args.overrides:
            raise UserError("--set: belongs to an experiment; a run is as it was trained")
        print_run(place(args.what, "workdir"))
    else:
        print_experiment(load(args.what, args.overrides), Path(args.what).stem)
    return 0


def print_run(workdir: epath.Path) -> None:
    """Print where a run is, what troubled it, and its goodput. Raise UserError if it is none."""
    from llama_jax.run.goodput import goodput_table, plot_goodput, read_attempts
    from llama_jax.run.metrics import read_metrics
    from llama_jax.run.workdir import config_file, metrics_file, steps

    path = config_file(workdir)
    if not path.exists():
        raise UserError(f"workdir: no {path}; {workdir} is not a run of llama-jax train")
    experiment = from_json(plain(path).read_bytes(), str(path))
    rows = read_metrics(workdir) if metrics_file(workdir).exists() else []
    held_out = [row for row in rows if "validation_loss" in row]
    at = max((row["step"] for row in rows), default=0)
    table = Table(title=str(workdir), show_header=False, title_justify="left")
    table.add_row("parameters", f"{num_params(experiment.model):,}")
    table.add_row("step", f"{at:,} of {experiment.run.num_steps:,}")
    if rows:
        loss = next((row["loss"] for row in reversed(rows) if "loss" in row), math.nan)
        table.add_row("loss", f"{loss:.4f}")
    if held_out:
        last = held_out[-1]
        table.add_row("held-out loss", f"{last['validation_loss']:.4f} at step {last['step']:,}")
    table.add_row("checkpoints", ", ".join(map(str, steps(workdir))) or "none yet")
    console = Console(markup=False)
    console.print(table)
    attempts = read_attempts(workdir)
    for attempt in attempts:
        for event in attempt.events[-LAST_EVENTS:]:
            when = datetime.datetime.fromtimestamp(event["time"], datetime.UTC)
            console.print(f"{when:%Y-%m-%d %H:%M} UTC  {event['event']}: {event['text']}")
    if attempts:
        console.print(goodput_table(attempts))
        console.print(f"figure: {plot_goodput(workdir)}", soft_wrap=True)


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
        "initial weights": experiment.init or f"random, of run.seed={run.seed}",
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
    _print_differences(experiment)


def _print_differences(experiment: Experiment) -> None:
    """Print what a result depends on and the paper has otherwise, in its model of nearest size."""
    params = num_params(experiment.model)
    papers = {name: load(name) for name in PAPER}
    name, paper = min(
        papers.items(), key=lambda item: abs(math.log(num_params(item[1].model) / params))
    )
    title = f"what differs from {name}, the paper's model of nearest size"
    table = Table(title=title, title_justify="left")
    table.add_column("field", no_wrap=True)
    for heading in ("here", "paper", "what it is"):
        table.add_column(heading, overflow="fold")
    for field, (theirs, ours) in changes(paper, experiment).items():
        if field.partition(".")[0] in IDENTITY and field != "data.store":
            table.add_row(field, _brief(ours), _brief(theirs), MEANINGS[field])
    if table.row_count:
        Console(markup=False).print(table)
    else:
        Console(markup=False).print(
            f"nothing that a result depends on differs from the paper's {name}"
        )


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return str(value)


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
