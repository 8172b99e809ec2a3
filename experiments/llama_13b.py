r"""LLaMA-13B: 13.0B parameters on 1.0T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 135,168 A100-80GB hours, 2.8 days on 2048 of them.

llama-jax plan experiments/llama_13b.py --slice v5p:4x4x4
llama-jax train experiments/llama_13b.py --slice v5p:4x4x4 --multihost \
    --workdir gs://BUCKET/llama_13b
"""

from llama_jax.config import (
    LLAMA_13B,
    PAPER_DATA,
    PAPER_UPKEEP,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    on_tpu,
)

# Slice: mesh, micro-batches, rematerialisation.
SLICES = {
    "v4:4x4x8": on_tpu(MeshConfig(fsdp=128), 8, "linear_offload"),
    "v5e:16x16": on_tpu(MeshConfig(fsdp=256, ring=16), 4, "mlp_offload"),
    "v5p:4x4x4": on_tpu(MeshConfig(fsdp=64), 8, "linear_offload"),
    "v6e:8x16": on_tpu(MeshConfig(fsdp=128, ring=8), 1, "nothing"),
}


def get_experiment() -> Experiment:
    return Experiment(
        model=LLAMA_13B,
        data=PAPER_DATA,
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2_000),
        run=RunConfig(num_steps=238_419),  # 1.0T tokens
        execution=SLICES["v4:4x4x8"],
        upkeep=PAPER_UPKEEP,
    )
