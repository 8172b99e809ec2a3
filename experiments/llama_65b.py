r"""LLaMA-65B: 65.3B parameters on 1.4T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 1,022,362 A100-80GB hours, 20.8 days on 2048 of them.

llama-jax plan experiments/llama_65b.py --slice v5p:8x8x16
llama-jax train experiments/llama_65b.py --slice v5p:8x8x16 --multihost \
    --workdir gs://BUCKET/llama_65b
"""

from llama_jax.config import (
    LLAMA_65B,
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
    "v4:8x16x16": on_tpu(
        MeshConfig(replica=8, fsdp=64, ring=8, tensor=4, sequence_parallel=True),
        1,
        "mlp_offload",
    ),
    "v5e:16x16": on_tpu(
        MeshConfig(fsdp=64, ring=16, tensor=4, sequence_parallel=True),
        16,
        "mlp_offload",
    ),
    "v5p:8x8x16": on_tpu(
        MeshConfig(replica=8, fsdp=64, ring=8, tensor=2, sequence_parallel=True),
        1,
        "linear_offload",
    ),
    "v6e:16x16": on_tpu(
        MeshConfig(fsdp=128, ring=16, tensor=2, sequence_parallel=True),
        2,
        "nothing",
    ),
}


def get_experiment() -> Experiment:
    return Experiment(
        model=LLAMA_65B,
        data=PAPER_DATA,
        optimizer=OptimizerConfig(peak_lr=1.5e-4, warmup_steps=2_000),
        run=RunConfig(num_steps=333_787),  # 1.4T tokens
        execution=SLICES["v4:8x16x16"],
        upkeep=PAPER_UPKEEP,
    )
