"""LLaMA-65B: 65.3B parameters on 1.4T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and 2048 v4 chips, a number chosen by arithmetic
and not measured; another slice wants a mesh of its own, e.g. --set mesh.fsdp=N.
Takes, by the paper's Table 15: 1,022,362 A100-80GB hours, 20.8 days on 2048 of them.

llama-jax train experiments/llama_65b.py --workdir gs://BUCKET/llama_65b --multihost
"""

from llama_jax.config import (
    LLAMA_65B,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)


def get_experiment() -> Experiment:
    return Experiment(
        model=LLAMA_65B,
        data=DataConfig(
            corpus="gs://BUCKET/corpus",
            tokenizer="gs://BUCKET/tokenizer.model",
            store="gs://BUCKET/store",
            seq_len=2048,
            batch_size=2048,  # rows: 4M tokens
        ),
        optimizer=OptimizerConfig(peak_lr=1.5e-4, warmup_steps=2_000),
        mesh=MeshConfig(fsdp=256, tensor=8, sequence_parallel=True),
        run=RunConfig(
            num_steps=333_787,  # 1.4T tokens
            micro_batches=4,
            eval_every=1_000,
            eval_rows=512,
            checkpoint_every=1_000,
            keep_every=10_000,
        ),
    )
