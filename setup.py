"""What pyproject.toml cannot say: what is installed inside of the package, from beside it."""

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py


class BuildWithRequirements(build_py):
    """Adds what `llama-jax pod install` installs on a host."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ("requirements-train.txt", "requirements-tpu.txt"):
                self.copy_file(name, f"{self.build_lib}/llama_jax/{name}")


setup(
    packages=[
        *find_namespace_packages(include=["llama_jax*"]),
        "llama_jax.experiments",
        "llama_jax.experiments.sweeps",
    ],
    package_dir={"llama_jax.experiments": "experiments"},
    cmdclass={"build_py": BuildWithRequirements},
)
