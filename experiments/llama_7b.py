"""LLaMA-7B: 6.7B parameters on 1.0T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and 64 v4 chips, a number chosen by arithmetic
and not measured; another slice wants a mesh of its own, e.g. --set mesh.fsdp=N.
Takes, by the paper's Table 15: 82,432 A100-80GB hours, 1.7 days on 2048 of them.

llama-jax train experiments/llama_7b.py --workdir gs://BUCKET/llama_7b --multihost
"""

from llama_jax.config import (
    LLAMA_7B,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)


def get_experiment() -> Experiment:
    return Experiment(
        model=LLAMA_7B,
        data=DataConfig(
            corpus="gs://BUCKET/corpus",
            tokenizer="gs://BUCKET/tokenizer.model",
            store="gs://BUCKET/store",
            seq_len=2048,
            batch_size=2048,  # rows: 4M tokens
        ),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2_000),
        mesh=MeshConfig(fsdp=64),
        run=RunConfig(
            num_steps=238_419,  # 1.0T tokens
            micro_batches=8,
            eval_every=1_000,
            eval_rows=512,
            checkpoint_every=1_000,
            keep_every=10_000,
        ),
    )
