"""The figures of a run in their files, also when those cannot be written."""

import resource

import pytest
from etils import epath

from llama_jax.run.metrics import Writer


@pytest.fixture
def a_small_disk():
    """No file grows beyond 16 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("num_figures", "file"), [(50, "tensorboard"), (0, "metrics.jsonl")])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, a_small_disk, num_figures, file):
    """Many figures fill the TensorBoard events first, and none only metrics.jsonl."""
    writer = Writer(epath.Path(tmp_path), 0, None)
    with pytest.raises(OSError, match=f"File too large: '{tmp_path}/{file}'"):
        for step in range(10_000):
            writer.write(step, {f"{i}": 1.0 for i in range(num_figures)})
