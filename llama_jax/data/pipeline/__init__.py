"""Sources run as pipelines of datatrove, which only `llama-jax prepare` loads."""
