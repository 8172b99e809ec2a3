"""Training throughput of this code, of transformers + torch and of MaxText, and the limit: a matrix
product.

    python benchmarks/train_step.py [--rounds 5] [--sizes 15M 110M]

Same shape, batch, precision, AdamW and clipping, in fp32 on the CPU of one machine; gpu.py measures
an NVIDIA GPU. Each trainer lives in a process of its own and they take turns, a few steps at a
time, so that a machine whose speed drifts drifts for all; figures are medians over the rounds.
MaxText takes part if compiled_step.py has made its environment.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from compiled_step import BIN as MAXTEXT_BIN
from rich.console import Console
from rich.table import Table

from llama_jax import config
from llama_jax.flops import model_flops_per_token, num_params


@dataclasses.dataclass(frozen=True)
class Work:
    model: config.ModelConfig
    seq_len: int
    rows: int  # a step
    steps: int  # a round


SIZES = {
    "15M": Work(config.LLAMA_15M, 512, rows=8, steps=2),
    "110M": Work(config.LLAMA_110M, 512, rows=2, steps=2),
}


def ours(turns: Connection, work: Work) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    from llama_jax.flops import measured_matmul_flops
    from llama_jax.sharding import batch_sharding, make_mesh
    from llama_jax.step import init_state, make_train_step, next_token_loss

    model = dataclasses.replace(work.model, compute_dtype="float32")
    experiment = config.Experiment(
        model=model,
        data=config.DataConfig(store="", seq_len=work.seq_len, batch_size=work.rows),
        optimizer=config.OptimizerConfig(peak_lr=3e-4),
        run=config.RunConfig(num_steps=10_000),
        upkeep=config.Upkeep(eval_every=1, eval_rows=1, checkpoint_every=1),
    )
    execution = experiment.execution
    mesh = make_mesh(execution.mesh, jax.devices()[:1])
    shape = 1, work.rows, work.seq_len + 1
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape)
    ones = np.ones((1, work.rows, work.seq_len), np.int32)
    batch = {
        "tokens": tokens[..., :-1].astype(np.int32),
        "targets": tokens[..., 1:].astype(np.int32),
        "segments": ones,
        "positions": ones * np.arange(work.seq_len, dtype=np.int32),
    }
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh, execution.mesh, "ABT"))
        state = jax.jit(lambda: init_state(experiment))()
        train_step = make_train_step(experiment, next_token_loss(execution))
        state, _ = train_step(state, batch)
        jax.block_until_ready(state)
        turns.send("ready")
        while steps := turns.recv():
            peak = measured_matmul_flops(1024)
            start = time.perf_counter()
            for _ in range(steps):
                state, _ = train_step(state, batch)
            jax.block_until_ready(state)
            turns.send((steps * work.rows * work.seq_len / (time.perf_counter() - start), peak))


def transformers_torch(turns: Connection, work: Work) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = work.model
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.embed_dim,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=model.mlp_dim,
            max_position_embeddings=work.seq_len,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
    )
    optimizer = torch.optim.AdamW(
        peer.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, model.vocab_size, (work.rows, work.seq_len))

    def step() -> torch.Tensor:
        loss = peer(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step().item()
    turns.send("ready")
    while steps := turns.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        turns.send((steps * work.rows * work.seq_len / (time.perf_counter() - start), None))


def maxtext(turns: Connection, work: Work) -> None:
    if not MAXTEXT_BIN.exists():
        turns.send("only once compiled_step.py has made its environment")
        return
    model = work.model
    settings = {
        "model_name": "llama2-7b",
        "override_model_config": "true",
        "base_emb_dim": model.embed_dim,
        "base_num_decoder_layers": model.num_layers,
        "base_num_query_heads": model.num_heads,
        "base_num_kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "base_mlp_dim": model.mlp_dim,
        "vocab_size": model.vocab_size,
        "max_target_length": work.seq_len,
        "per_device_batch_size": work.rows,
        "dtype": "float32",
        "weight_dtype": "float32",
        "opt_type": "adamw",
        "attention": "dot_product",
        "remat_policy": "minimal",  # recomputes no matrix product
        "hardware": "cpu",
        "skip_jax_distributed_system": "true",
        "enable_checkpointing": "false",
        "dataset_type": "synthetic",
        "steps": 10_000,
        "run_name": "benchmark",
        "base_output_directory": tempfile.mkdtemp(),
        "gcs_metrics": "false",
    }
    process = subprocess.Popen(
        [MAXTEXT_BIN / "python", Path(__file__).with_name("maxtext_train.py")]
        + [f"{name}={value}" for name, value in settings.items()],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    questions, answers = process.stdin, process.stdout
    assert questions and answers

    def take(steps: int) -> float:
        questions.write(f"{steps}\n")
        return float(answers.readline())

    take(1)
    turns.send("ready")
    while steps := turns.recv():
        turns.send((take(steps), None))
    questions.write("0\n")
    process.wait()


TRAINERS: dict[str, Callable[[Connection, Work], None]] = {
    "llama_jax": ours,
    "transformers": transformers_torch,
    "MaxText": maxtext,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training throughput, beside peers and a limit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    table = Table(title=f"Training on {os.cpu_count()} CPU cores, fp32")
    for column in ("size", "trainer", "tokens/s", "min", "max", "ratio", "of matmul peak"):
        table.add_column(column, justify="right")
    for name in args.sizes:
        work = SIZES[name]
        measured = measure(work, args.rounds)
        mine = statistics.median(rate for rate, _ in measured["llama_jax"])
        peak = statistics.median(peak for _, peak in measured["llama_jax"] if peak is not None)
        flops = model_flops_per_token(work.model, work.seq_len)
        for trainer, rounds in measured.items():
            rates = [rate for rate, _ in rounds]
            rate = statistics.median(rates)
            table.add_row(
                f"{name} ({num_params(work.model) / 1e6:.1f}M, {work.rows} x {work.seq_len})",
                trainer,
                *(f"{x:,.0f}" for x in (rate, min(rates), max(rates))),
                f"{mine / rate:.2f}",
                f"{rate * flops / peak:.0%} of {peak / 1e9:,.0f} GFLOP/s",
            )
        table.add_section()
    Console(width=120).print(table)


def measure(work: Work, rounds: int) -> dict[str, list[tuple[float, float | None]]]:
    """Measure each trainer that can run, a tuple a round: (tokens/s, matmul FLOP/s or None)."""
    spawn = multiprocessing.get_context("spawn")
    turns, processes = {}, []
    for name, trainer in TRAINERS.items():
        here, there = spawn.Pipe()
        process = spawn.Process(target=trainer, args=(there, work), daemon=True)
        process.start()
        if (state := here.recv()) == "ready":
            turns[name] = here
            processes.append(process)
        else:
            print(f"without {name}: {state}")
    measured: dict[str, list] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            turn.send(work.steps)
            measured[name].append(turn.recv())
    for turn, process in zip(turns.values(), processes, strict=True):
        turn.send(0)
        process.join()
    return measured


if __name__ == "__main__":
    main()
