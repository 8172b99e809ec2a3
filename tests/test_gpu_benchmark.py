"""benchmarks/gpu.py and its parts, without a GPU: every part at a tiny size, on a CPU."""

import ast
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

import gpu
import gpu_parts
from helpers.paths import ROOT
from llama_jax.attention import cudnn, reference
from llama_jax.config import Execution, ModelConfig
from llama_jax.hardware import CHIPS

TINY = ModelConfig(num_layers=1, embed_dim=64, num_heads=2, vocab_size=256)


def xla(*qkv_and_segments):
    """The call that cuDNN gets on a GPU, by XLA's own implementation."""
    return cudnn(*qkv_and_segments, implementation="xla")


def across_documents(q, k, v, segments):
    return reference(q, k, v, segments * 0)


def measured(row: gpu_parts.Row) -> float:
    assert row.measured is not None
    return row.measured


def test_limits_are_measured():
    rows = gpu_parts.limits(size=128, num_bytes=2**20)
    assert all(measured(row) > 0 and row.beside is None and row.ratio is None for row in rows)


def test_attention_is_held_against_the_reference():
    shape = ((2, 2, 64),)
    errors = [measured(row) for row in gpu_parts.attention(xla, shape)]
    assert len(errors) == 2 and 0 < max(errors) < gpu_parts.TOLERANCE
    wrong = [measured(row) for row in gpu_parts.attention(across_documents, shape)]
    assert min(wrong) > 5 * gpu_parts.TOLERANCE


def test_training_is_held_against_the_plan():
    rows = gpu_parts.training(
        "tiny",
        TINY,
        Execution(remat="linear"),
        rows=2,
        steps=1,
        seq_len=64,
        chip=CHIPS["h100"],
        matmul_size=128,
    )
    rate, mfu, step, memory = rows
    assert rate.measured == pytest.approx(2 * 64 / measured(step))
    assert step.ratio is not None
    assert mfu.ratio == pytest.approx(1 / step.ratio)  # both beside the same plan
    assert memory.measured is None  # a CPU's device does not tell
    assert memory.beside is not None and memory.beside > 0


@pytest.mark.parametrize("int8", [False, True])
def test_decoding_is_held_against_the_bandwidth(int8):
    (row,) = gpu_parts.decoding("tiny", TINY, int8, batches=(2,), new=40, read_bytes=2**20)
    assert row.quantity == "decoding, batch 2"
    assert measured(row) > 0 and row.ratio is not None and 0 < row.ratio < 1


def test_a_step_of_decoding_reads_matrices_and_caches():
    cfg = dataclasses.replace(TINY, num_kv_heads=1)
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256 + 64 * 256
    cache = 2 * 32 * (gpu_parts.PROMPT + 10)  # keys and values of one head, tokens so far
    assert gpu_parts.step_bytes(cfg, int8=False, batch=3, new=20) == 2 * (matrices + 3 * cache)
    assert gpu_parts.step_bytes(cfg, int8=True, batch=3, new=20) == matrices + 2 * 3 * cache


@pytest.mark.parametrize("chip", ["a100", "h100", "h200"])
@pytest.mark.parametrize("size, rows", [("1B", 8), ("110M", 16)])
@pytest.mark.parametrize("remat", ["linear", "nothing"])
def test_what_is_trained_fits_by_the_plan(chip, size, rows, remat):
    experiment = gpu_parts.experiment_of(
        gpu_parts.gpu_model(size), gpu_parts.gpu_execution(remat), rows, seq_len=2048
    )
    plan = gpu_parts.plan_for(experiment, CHIPS[chip])
    assert plan.spare_share is not None and plan.step_seconds is not None
    assert plan.fits and plan.spare_share > 0.4 and 0 < plan.step_seconds < 1


def test_no_part_begins_late_and_the_table_says_what_was_left_out():
    now = [0.0]
    limits_of_parts = []

    def ask(part: str, seconds: float) -> gpu.Answer:
        now[0] += 200
        limits_of_parts.append(seconds)
        return gpu.Answer(gpu_parts.limits(size=64, num_bytes=2**12))

    found = dict(gpu.run_parts(["a", "b", "c", "d"], ask, clock=lambda: now[0]))
    assert [name for name, answer in found.items() if answer is None] == ["d"]
    assert limits_of_parts == [gpu.PART_SECONDS, gpu.PART_SECONDS, gpu.PART_SECONDS]
    assert gpu.START_SECONDS < gpu.END_SECONDS < 600


def test_the_table_shows_units_and_ratios():
    row = gpu_parts.Row(
        part="limits",
        quantity="memory bandwidth",
        unit="GB/s",
        measured=3e12,
        beside=3.35e12,
        beside_what="data sheet",
    )
    out = io.StringIO()
    unknown = dataclasses.replace(row, measured=None)
    Console(file=out, width=140).print(gpu.tabulate([row, unknown], "card"))
    assert re.search(r"3,000 GB/s *│ *3,350 GB/s *│ data sheet *│ +0.90", out.getvalue())
    assert "unknown" in out.getvalue()


def test_an_answer_survives_the_way_between_processes():
    row = gpu_parts.limits(size=64, num_bytes=2**12)[0]
    sent = json.dumps(dataclasses.asdict(gpu.Answer([row], card="card")))
    received = json.loads(sent)
    assert gpu_parts.Row(**received["rows"][0]) == row


def test_its_docstring_installs_the_pinned_versions():
    doc = ast.get_docstring(ast.parse((ROOT / "benchmarks/gpu.py").read_text()))
    assert doc is not None
    (command,) = re.findall(r"pip install (.*)", doc)
    text = (ROOT / "requirements-train.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.M))
    named = re.findall(r'"?([\w-]+)(?:\[cuda12\])?==([\d.]+)', command)
    assert len(named) == 5 and dict(named).items() <= pinned.items()
