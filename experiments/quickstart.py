"""A 3M-parameter LLaMA on the embedded corpus: the whole path in a few minutes on a laptop.

llama-jax train experiments/quickstart.py
"""

from llama_jax.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)


def get_experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            num_layers=4,
            embed_dim=256,
            num_heads=4,
            vocab_size=2048,
            compute_dtype="float32",  # CPUs are slower in bfloat16
        ),
        data=DataConfig(store="runs/store/quickstart", seq_len=256, batch_size=16),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=50),
        mesh=MeshConfig(),
        run=RunConfig(num_steps=500, eval_every=100, eval_rows=64, checkpoint_every=100),
    )
