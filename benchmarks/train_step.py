"""Training throughput of this code, of transformers + torch, and the limit: a matrix product.

    python benchmarks/train_step.py [--rounds 5] [--sizes 15M 110M]

Same shape, batch, fp32, AdamW and clipping on the CPU of one machine. Each trainer lives in a
process of its own and they take turns, a few steps at a time, so that a machine whose speed drifts
drifts for both; figures are medians over the rounds.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

from rich.console import Console
from rich.table import Table

from llama_jax import config
from llama_jax.flops import model_flops_per_token, num_params

SEQ_LEN = 512
# size -> (shape, rows a step, steps a round)
SIZES = {"15M": (config.LLAMA_15M, 8, 2), "110M": (config.LLAMA_110M, 2, 2)}


def ours(turns: Connection, model: config.ModelConfig, rows: int) -> None:
    import jax
    import numpy as np

    from llama_jax.flops import measured_matmul_flops
    from llama_jax.sharding import batch_sharding, make_mesh
    from llama_jax.step import init_state, make_train_step

    experiment = config.Experiment(
        model=dataclasses.replace(model, compute_dtype="float32"),
        data=config.DataConfig(store="", seq_len=SEQ_LEN, batch_size=rows),
        optimizer=config.OptimizerConfig(peak_lr=3e-4),
        mesh=config.MeshConfig(),
        run=config.RunConfig(num_steps=10_000, eval_every=1, eval_rows=1, checkpoint_every=1),
    )
    mesh = make_mesh(experiment.mesh, jax.devices())
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, rows, SEQ_LEN + 1))
    ones = np.ones((1, rows, SEQ_LEN), np.int32)
    batch = {
        "tokens": tokens[..., :-1].astype(np.int32),
        "targets": tokens[..., 1:].astype(np.int32),
        "segments": ones,
        "positions": ones * np.arange(SEQ_LEN, dtype=np.int32),
    }
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh, experiment.mesh, "ABT"))
        state = jax.jit(lambda: init_state(experiment))()
        train_step = make_train_step(experiment)
        state, _ = train_step(state, batch)
        jax.block_until_ready(state)
        turns.send("ready")
        while steps := turns.recv():
            peak = measured_matmul_flops()
            start = time.perf_counter()
            for _ in range(steps):
                state, _ = train_step(state, batch)
            jax.block_until_ready(state)
            turns.send((steps * rows * SEQ_LEN / (time.perf_counter() - start), peak))


def transformers_torch(turns: Connection, model: config.ModelConfig, rows: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.embed_dim,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=model.mlp_dim,
            max_position_embeddings=SEQ_LEN,
            attn_implementation="sdpa",
        )
    )
    optimizer = torch.optim.AdamW(
        peer.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, model.vocab_size, (rows, SEQ_LEN))

    def step() -> None:
        peer(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    turns.send("ready")
    while steps := turns.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        turns.send((steps * rows * SEQ_LEN / (time.perf_counter() - start), None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    table = Table(title=f"fp32 training, {SEQ_LEN} tokens a row, {os.cpu_count()} CPU cores")
    for column in ("size", "trainer", "tokens/s", "min", "max", "ratio", "of matmul peak"):
        table.add_column(column, justify="right")
    for size in args.sizes:
        model, rows, steps = SIZES[size]
        rates = measure(model, rows, steps, args.rounds)
        mine, peer = (statistics.median(rate for rate, _ in r) for r in rates)
        peak = statistics.median(peak for _, peak in rates[0])
        flops = model_flops_per_token(model, SEQ_LEN)
        for name, r, rate in (("llama_jax", rates[0], mine), ("transformers", rates[1], peer)):
            low, high = min(x for x, _ in r), max(x for x, _ in r)
            table.add_row(
                f"{size} ({num_params(model) / 1e6:.1f}M, {rows} rows)",
                name,
                *(f"{x:,.0f}" for x in (rate, low, high)),
                f"{rate / peer:.2f}",
                f"{rate * flops / peak:.0%} of {peak / 1e9:.0f} GFLOP/s",
            )
        table.add_section()
    Console(width=120).print(table)


def measure(model: config.ModelConfig, rows: int, steps: int, rounds: int):
    """For ours and the peer, a list of (tokens/s, matmul FLOP/s or None), one a round."""
    spawn = multiprocessing.get_context("spawn")
    turns = []
    for trainer in (ours, transformers_torch):
        here, there = spawn.Pipe()
        spawn.Process(target=trainer, args=(there, model, rows), daemon=True).start()
        assert here.recv() == "ready"
        turns.append(here)
    rates: tuple[list, list] = ([], [])
    for _ in range(rounds):
        for turn, found in zip(turns, rates, strict=True):
            turn.send(steps)
            found.append(turn.recv())
    for turn in turns:
        turn.send(0)
    return rates


if __name__ == "__main__":
    main()
