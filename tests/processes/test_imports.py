"""What a process loads: no TensorFlow where it trains, nothing heavy where it parses."""

import subprocess
import sys


def test_training_needs_no_tensorflow():
    code = (
        "import sys; from llama_jax.data import batches, store, tokenizer; "
        "sys.exit(str([m for m in ('tensorflow', 'seqio', 'tensorflow_text') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, llama_jax.cli; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
