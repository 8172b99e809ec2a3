"""LLaMA (arXiv 2302.13971), trained from public data on TPUs in JAX and Flax."""
