r"""LLaMA-33B: 32.5B parameters on 1.4T tokens, as in the paper's Table 2 and section 2.3.

Needs: a token store of the paper's seven sources, and one of the SLICES below, each compiled for by
`llama-jax plan`; their figures are in results/plans.json.
Takes, by the paper's Table 15: 530,432 A100-80GB hours, 10.8 days on 2048 of them.

llama-jax plan experiments/llama_33b.py --slice v5p:4x8x8
llama-jax train experiments/llama_33b.py --slice v5p:4x8x8 --multihost \
    --workdir gs://BUCKET/llama_33b
"""

from llama_jax.config import (
    LLAMA_33B,
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
    "v4:8x8x8": on_tpu(MeshConfig(fsdp=512), 1, "qkv_offload"),
    "v5e:16x16": on_tpu(MeshConfig(fsdp=128, tensor=2, sequence_parallel=True), 8, "mlp_offload"),
    "v5p:4x8x8": on_tpu(MeshConfig(fsdp=256), 2, "linear_offload"),
    "v6e:16x16": on_tpu(MeshConfig(fsdp=256, ring=16), 1, "nothing"),
}


def get_experiment() -> Experiment:
    return Experiment(
        model=LLAMA_33B,
        data=PAPER_DATA,
        optimizer=OptimizerConfig(peak_lr=1.5e-4, warmup_steps=2_000),
        run=RunConfig(num_steps=333_787),  # 1.4T tokens
        execution=SLICES["v4:8x8x8"],
        upkeep=PAPER_UPKEEP,
    )
