"""The figures of a run in their files, also when those cannot be written."""

import json
import resource

import pytest
from etils import epath

from llama_jax.config import UserError
from llama_jax.run.metrics import Writer, read_metrics


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


ROWS = [{"step": n, "tokens": 10 * n, "loss": 2.0, "tokens_per_second": 1.5} for n in (1, 2, 3)]
FIRST, SECOND, THIRD = (json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.mark.parametrize(
    "end", [b"", b"{", THIRD[:30], b"\0" * 4096, THIRD[:9] + b"\0" * 99, b"\n\n"]
)
def test_an_end_that_was_cut_off_is_left_out(tmp_path, end):
    (tmp_path / "metrics.jsonl").write_bytes(FIRST + SECOND + end)
    assert read_metrics(epath.Path(tmp_path)) == ROWS[:2]


@pytest.mark.parametrize(
    "line", [SECOND[:30] + b"\n", b"\0" * 99 + b"\n", b"[]\n", b'{"step": 2}\n']
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(FIRST + line + THIRD)
    with pytest.raises(UserError, match="metrics.jsonl: line 2 is damaged, expected figures"):
        read_metrics(epath.Path(tmp_path))
