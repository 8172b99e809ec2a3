"""What a process loads: no TensorFlow where it trains, nothing heavy where it parses."""

import subprocess
import sys

from helpers.processes import child


def test_training_needs_no_tensorflow():
    code = (
        "import sys; from llama_jax.data import batches, store, tokenizer; "
        "sys.exit(str([m for m in ('tensorflow', 'seqio', 'tensorflow_text') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"


def test_a_host_that_only_trains_needs_requirements_train_only(experiment_file, tmp_path):
    """None of the packages of requirements-tools.txt can be imported."""
    code = """
import sys
for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "libtpu",
             "tensorboard", "gguf", "safetensors"):
    sys.modules[name] = None
from llama_jax.cli import main
main()
"""
    few = ("--set", "run.num_steps=3", "--set", "upkeep.eval_every=3")
    done = child(code, "train", experiment_file, "--workdir", tmp_path / "run", *few)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/3").exists()


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, llama_jax.cli; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
