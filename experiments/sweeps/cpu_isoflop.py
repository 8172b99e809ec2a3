"""IsoFLOP curves of models from 0.03M to 0.5M parameters, on two CPU cores and the embedded corpus.

Needs: 2 CPU cores and 2 GB of memory, and the token store of experiments/quickstart.py, which it
makes if that is not there. Takes: about 70 minutes on two cores that others use as well.
The batch is small because the steps are few: of 512, 1,024 and 2,048 tokens, 512 gave 154K
parameters the lowest loss at 6e11 FLOPs (4.80, 5.07 and 5.15).

llama-jax sweep experiments/sweeps/cpu_isoflop.py
llama-jax fit runs/cpu_isoflop/results.csv
"""

from llama_jax.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
)
from llama_jax.sweeps.ladder import matched, tokens_for

# Training FLOPs (6ND): layers and width of the models.
BUDGETS = {
    6e11: ((1, 12), (1, 16), (1, 24), (2, 32), (2, 48), (2, 64)),
    1.5e12: ((1, 16), (1, 24), (2, 32), (2, 48), (2, 64), (3, 80)),
    4e12: ((2, 32), (2, 48), (2, 64), (3, 64), (3, 80), (3, 96)),
    1e13: ((2, 48), (2, 56), (2, 64), (3, 64), (3, 80), (3, 96)),
}
# In proportion to the text that there is, so that no run of 11M tokens reads anything twice.
MIXTURE = (
    ("commoncrawl", 0.287),
    ("c4", 0.162),
    ("github", 0.1325),
    ("wikipedia", 0.1526),
    ("books", 0.2406),
    ("arxiv", 0.0096),
    ("stackexchange", 0.0157),
)


def model(layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        num_layers=layers,
        embed_dim=width,
        num_heads=width // 8,
        mlp_dim_override=-(-8 * width // 3 // 16) * 16,  # the paper's rule, rounded more finely
        vocab_size=2048,
        tie_embeddings=True,  # or they would be most of the parameters
        compute_dtype="float32",
    )


def base(width: int) -> Experiment:
    return Experiment(
        model=model(1, width),
        data=DataConfig(mixture=MIXTURE, store="runs/store/quickstart", seq_len=256, batch_size=2),
        optimizer=OptimizerConfig(peak_lr=6e-3 * (48 / width) ** 0.5),
        run=RunConfig(num_steps=1000),
        upkeep=Upkeep(eval_every=1000, eval_rows=32, checkpoint_every=1000, keep_last=1),
    )


def get_sweep() -> dict[str, Experiment]:
    sweep = {}
    for flops, shapes in BUDGETS.items():
        for layers, width in shapes:
            shape = model(layers, width)
            experiment = matched(
                base(width), shape, tokens_for(shape, flops), evaluations=4, warmup_share=0.05
            )
            sweep[f"{flops:.3g}-{layers}x{width}"] = experiment
    return sweep
