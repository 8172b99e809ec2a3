r"""LLaMA-33B: 32.5B parameters on 1.4T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 530,432 A100-80GB hours, 10.8 days on 2048 of them.

llama-jax plan experiments/llama_33b.py --slice v5p:4x8x8
llama-jax train experiments/llama_33b.py --slice v5p:4x8x8 --multihost \
    --workdir gs://BUCKET/llama_33b
"""

import dataclasses

from llama_jax.config import (
    ASYNC_GATHERS,
    LLAMA_33B,
    WHOLE_LOOPS,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)

# Slice: mesh, micro-batches, rematerialisation.
SLICES = {
    "v4:8x8x8": (MeshConfig(fsdp=512), 1, "qkv_offload"),
    "v5e:16x16": (MeshConfig(fsdp=128, tensor=2, sequence_parallel=True), 8, "mlp_offload"),
    "v5p:4x8x8": (MeshConfig(fsdp=256), 2, "linear_offload"),
    "v6e:16x16": (MeshConfig(fsdp=256, ring=16), 1, "nothing"),
}


def get_experiment(slice: str = "v4:8x8x8") -> Experiment:
    mesh, micro_batches, remat = SLICES[slice]
    return Experiment(
        model=dataclasses.replace(LLAMA_33B, attention="splash", remat=remat),
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
