"""The figures of a run in their files, also when those cannot be written."""

import json
import resource

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from llama_jax.config import UserError
from llama_jax.run.metrics import Writer, read_metrics


@pytest.mark.parametrize(("num_figures", "file"), [(50, "tensorboard"), (0, "metrics.jsonl")])
def test_what_a_full_disk_does_not_take_is_written_later(tmp_path, num_figures, file):
    """No file grows beyond 16 kB, at first. Many figures fill TensorBoard's first."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        writer = Writer(epath.Path(tmp_path), 0, None)
        step = 0
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/{file}"):
            while True:
                step += 1
                figures = {"tokens": 1, "loss": 2.0, "tokens_per_second": 1.5}
                writer.write(step, figures | {f"{i}": 1.0 for i in range(num_figures)})
                if num_figures:
                    writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.close()
    assert [row["step"] for row in read_metrics(epath.Path(tmp_path))] == [*range(1, step + 1)]
    (events,) = (tmp_path / "tensorboard").iterdir()
    losses = [
        event.step
        for event in EventFileLoader(str(events)).Load()
        for value in event.summary.value
        if value.tag == "loss"
    ]
    assert losses == [*range(1, step + 1)]


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
