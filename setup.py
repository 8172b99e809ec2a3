"""What pyproject.toml cannot say: experiments/ is installed inside of the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["llama_jax*"]),
        "llama_jax.experiments",
        "llama_jax.experiments.sweeps",
    ],
    package_dir={"llama_jax.experiments": "experiments"},
)
