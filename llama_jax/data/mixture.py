"""The seqio Mixture "llama_mixture", of the text that comes with the package: import this, and
other seqio programs find it. tasks.register(experiment.data, NAME) registers an experiment's.
"""

from llama_jax.config import DataConfig
from llama_jax.data import tasks

tasks.register(DataConfig(store="", batch_size=1), "llama_mixture")
