r"""LLaMA-65B: 65.3B parameters on 1.4T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 1,022,362 A100-80GB hours, 20.8 days on 2048 of them.

llama-jax plan experiments/llama_65b.py --slice v5p:8x8x16
llama-jax train experiments/llama_65b.py --slice v5p:8x8x16 --multihost \
    --workdir gs://BUCKET/llama_65b
"""

import dataclasses

from llama_jax.config import (
    ASYNC_GATHERS,
    LLAMA_65B,
    WHOLE_LOOPS,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)

# Slice: mesh, micro-batches, rematerialisation.
SLICES = {
    "v4:8x16x16": (
        MeshConfig(replica=8, fsdp=64, ring=8, tensor=4, sequence_parallel=True),
        1,
        "mlp_offload",
    ),
    "v5e:16x16": (
        MeshConfig(fsdp=64, ring=16, tensor=4, sequence_parallel=True),
        16,
        "mlp_offload",
    ),
    "v5p:8x8x16": (
        MeshConfig(replica=8, fsdp=64, ring=8, tensor=2, sequence_parallel=True),
        1,
        "linear_offload",
    ),
    "v6e:16x16": (
        MeshConfig(fsdp=128, ring=16, tensor=2, sequence_parallel=True),
        2,
        "nothing",
    ),
}


def get_experiment(slice: str = "v4:8x16x16") -> Experiment:
    mesh, micro_batches, remat = SLICES[slice]
    return Experiment(
        model=dataclasses.replace(LLAMA_65B, attention="splash", remat=remat),
        data=DataConfig(
            corpus="gs://BUCKET/corpus",
            tokenizer="gs://BUCKET/tokenizer.model",
            store="gs://BUCKET/store",
            seq_len=2048,
            batch_size=2048,  # rows: 4M tokens
        ),
        optimizer=OptimizerConfig(peak_lr=1.5e-4, warmup_steps=2_000),
        mesh=dataclasses.replace(mesh, slice=slice),
        run=RunConfig(
            num_steps=333_787,  # 1.4T tokens
            micro_batches=micro_batches,
            compiler_options=(ASYNC_GATHERS, WHOLE_LOOPS),
            eval_every=1_000,
            eval_rows=512,
            checkpoint_every=1_000,
            keep_every=10_000,
        ),
    )
