"""A loss that jumps: the run ends, skips the update, or goes back and leaves out the batches."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.runs import fingerprints, losses
from helpers.stores import write_split
from llama_jax.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
)
from llama_jax.data.batches import TrainRows
from llama_jax.data.schedule import Entry
from llama_jax.guards.spikes import WINDOW, Diverged
from llama_jax.run import checkpoint
from llama_jax.run.goodput import read_attempts
from llama_jax.run.metrics import read_metrics
from llama_jax.train import train

BAD = WINDOW + 8  # the batch whose rows are noise
LAST, EVERY = BAD + 8, 16


@pytest.fixture(scope="module")
def spiky(tmp_path_factory) -> Experiment:
    """Text that repeats itself, so that it is learnt at once, but for the rows of one batch."""
    directory = tmp_path_factory.mktemp("spiky")
    data = DataConfig(
        mixture=(("only", 1.0),), store=str(directory / "store"), seq_len=16, batch_size=8
    )
    tokens = np.tile(np.arange(3, 19, dtype=np.uint16), 2_000)
    write_split(data, "only", "train", [tokens], of_tokenizer=True)
    write_split(data, "only", "validation", [tokens[:300]], of_tokenizer=True)
    noise = np.random.default_rng(0)
    rows = TrainRows(data)
    for row in range(BAD * 8, BAD * 8 + 8):
        start = rows.locate(row)[1] * 16
        tokens[start : start + 16] = noise.integers(3, 250, 16)
    write_split(data, "only", "train", [tokens], of_tokenizer=True)
    return Experiment(
        model=ModelConfig(
            num_layers=1, embed_dim=16, num_heads=2, vocab_size=4096, compute_dtype="float32"
        ),
        data=data,
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=2),
        run=RunConfig(num_steps=LAST, spike_deviations=6.0),
        upkeep=Upkeep(eval_every=LAST, eval_rows=8, checkpoint_every=EVERY, keep_last=9),
    )


def trained(experiment: Experiment, on_spike: str, workdir: Path) -> Experiment:
    run = dataclasses.replace(experiment.run, on_spike=on_spike)
    experiment = dataclasses.replace(experiment, run=run)
    train(experiment, epath.Path(workdir), accept_changes=False)
    return experiment


def goes_on_as_before(experiment: Experiment, workdir: Path, saved: int, tmp_path: Path) -> None:
    """A run that is killed before the spike, with a checkpoint at `saved`, does the same again."""
    again = shutil.copytree(workdir, tmp_path / "again")
    for path in (again / "checkpoints").iterdir():
        if int(path.name) > saved:
            shutil.rmtree(path)
    train(experiment, epath.Path(again), accept_changes=False)
    assert losses(again) == losses(workdir)
    assert fingerprints(again, LAST) == fingerprints(workdir, LAST)


def test_a_spike_ends_the_run_with_its_rows(spiky, tmp_path):
    with pytest.raises(Diverged) as e:
        trained(spiky, "stop", tmp_path / "run")
    said = str(e.value)
    assert said.startswith(f"step {BAD + 1}: loss is ")
    assert f"6 standard deviations over the mean of the {WINDOW} before" in said
    assert len((tmp_path / f"run/nonfinite_step_{BAD + 1}.txt").read_text().splitlines()) == 8


def test_a_skipped_update_leaves_the_state_and_is_skipped_again(spiky, tmp_path):
    workdir = tmp_path / "run"
    experiment = trained(spiky, "skip", workdir)
    rows = {row["step"]: row for row in read_metrics(epath.Path(workdir)) if "loss" in row}
    assert [step for step in rows if rows[step]["skipped"]] == [BAD + 1]
    usual = max(rows[step]["loss"] for step in range(BAD - 20, BAD + 1))
    assert rows[BAD + 1]["loss"] > 3 * usual
    assert max(rows[step]["loss"] for step in range(BAD + 2, LAST + 1)) < 1.5 * usual
    (event,) = (event for a in read_attempts(epath.Path(workdir)) for event in a.events)
    assert event["event"] == "spike" and "its update was skipped" in event["text"]
    goes_on_as_before(experiment, workdir, BAD - BAD % EVERY, tmp_path)


def test_a_roll_back_leaves_out_the_batches_since_the_checkpoint(spiky, tmp_path):
    workdir, saved = tmp_path / "run", BAD - BAD % EVERY
    experiment = trained(spiky, "roll_back", workdir)
    assert list(losses(workdir)) == list(range(1, LAST + 1))
    usual = max(losses(workdir)[step] for step in range(BAD - 20, BAD))
    assert max(losses(workdir)[step] for step in range(BAD, LAST + 1)) < 1.5 * usual
    meta = checkpoint.read_meta(epath.Path(workdir), LAST)
    assert meta.schedule.entries == (Entry(0, 0), Entry(saved, BAD + 1))
    (attempt,) = read_attempts(epath.Path(workdir))
    (event,) = attempt.events
    assert f"rolled back to step {saved}, without batches {saved} to {BAD}" in event["text"]
    assert attempt.lost_steps == BAD - saved  # the spike itself has no row
    goes_on_as_before(experiment, workdir, saved, tmp_path)


@pytest.mark.parametrize("on_spike", ["skip", "roll_back"])
def test_what_does_not_help_ends_the_run(experiment, tmp_path, on_spike):
    optimizer = dataclasses.replace(experiment.optimizer, peak_lr=1e20, warmup_steps=1)
    hopeless = dataclasses.replace(
        experiment,
        optimizer=optimizer,
        run=dataclasses.replace(experiment.run, num_steps=20),
        upkeep=dataclasses.replace(experiment.upkeep, checkpoint_every=100, eval_every=100),
    )
    with pytest.raises(Diverged) as e:
        trained(hopeless, on_spike, tmp_path / "run")
    if on_spike == "roll_back":
        assert str(e.value).endswith("rolled back to step 0 3 times")
    assert all(np.isfinite(x) for x in losses(tmp_path / "run").values()) or on_spike == "skip"
