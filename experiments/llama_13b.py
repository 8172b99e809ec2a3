r"""LLaMA-13B: 13.0B parameters on 1.0T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 135,168 A100-80GB hours, 2.8 days on 2048 of them.

llama-jax plan experiments/llama_13b.py --slice v5p:4x4x4
llama-jax train experiments/llama_13b.py --slice v5p:4x4x4 --multihost \
    --workdir gs://BUCKET/llama_13b
"""

import dataclasses

from llama_jax.config import (
    ASYNC_GATHERS,
    LLAMA_13B,
    WHOLE_LOOPS,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)

# Slice: mesh, micro-batches, rematerialisation.
SLICES = {
    "v4:4x4x8": (MeshConfig(fsdp=128), 8, "linear_offload"),
    "v5e:16x16": (MeshConfig(fsdp=256, ring=16), 4, "mlp_offload"),
    "v5p:4x4x4": (MeshConfig(fsdp=64), 8, "linear_offload"),
    "v6e:8x16": (MeshConfig(fsdp=128, ring=8), 1, "nothing"),
}


def get_experiment(slice: str = "v4:4x4x8") -> Experiment:
    mesh, micro_batches, remat = SLICES[slice]
    return Experiment(
        model=dataclasses.replace(LLAMA_13B, attention="splash", remat=remat),
        data=DataConfig(
            corpus="gs://BUCKET/corpus",
            tokenizer="gs://BUCKET/tokenizer.model",
            store="gs://BUCKET/store",
            seq_len=2048,
            batch_size=2048,  # rows: 4M tokens
        ),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2_000),
        mesh=dataclasses.replace(mesh, slice=slice),
        run=RunConfig(
            num_steps=238_419,  # 1.0T tokens
            micro_batches=micro_batches,
            compiler_options=(ASYNC_GATHERS, WHOLE_LOOPS),
            eval_every=1_000,
            eval_rows=512,
            checkpoint_every=1_000,
            keep_every=10_000,
        ),
    )
