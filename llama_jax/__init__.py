"""LLaMA (arXiv 2302.13971), trained from public data on TPUs in JAX and Flax.

What the commands do can be done from Python, by the names below: load a run or another framework's
model and ask for logits, continuations and held-out losses; build a train step and its batches;
convert between formats. `llama_jax.train.train` is the whole training loop.
"""

import importlib
import typing

from llama_jax.config import (
    DataConfig,
    Execution,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
    UserError,
)
from llama_jax.experiment import identity
from llama_jax.loading import load as load_experiment

if typing.TYPE_CHECKING:
    from llama_jax.data.batches import train_batches
    from llama_jax.formats.convert import convert, open_source
    from llama_jax.generation.sampling import Sampling
    from llama_jax.model import Llama
    from llama_jax.opened import Model, open_model
    from llama_jax.sharding import batch_sharding, make_mesh
    from llama_jax.step import TrainState, init_state, make_train_step, next_token_loss

__version__ = "0.1.0"
__all__ = [
    "DataConfig",
    "Execution",
    "Experiment",
    "Llama",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "Sampling",
    "TrainState",
    "Upkeep",
    "UserError",
    "batch_sharding",
    "convert",
    "identity",
    "init_state",
    "load_experiment",
    "make_mesh",
    "make_train_step",
    "next_token_loss",
    "open_model",
    "open_source",
    "train_batches",
]

# Where a name lies whose module takes seconds to import: it is imported when the name is used.
_MODULES = {
    "Llama": "model",
    "Model": "opened",
    "Sampling": "generation.sampling",
    "TrainState": "step",
    "batch_sharding": "sharding",
    "convert": "formats.convert",
    "init_state": "step",
    "make_mesh": "sharding",
    "make_train_step": "step",
    "next_token_loss": "step",
    "open_model": "opened",
    "open_source": "formats.convert",
    "train_batches": "data.batches",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'llama_jax' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"llama_jax.{_MODULES[name]}"), name)
    globals()[name] = found  # pdoc looks for the names there
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
