"""The schedule: which batch a step trains on, before and after a resume."""

import shutil

import jax
import numpy as np
from etils import epath

from helpers.runs import losses, origin_of
from llama_jax.data.batches import train_batches
from llama_jax.data.schedule import Entry, Schedule
from llama_jax.run import checkpoint, managers
from llama_jax.sharding import batch_sharding, make_mesh
from llama_jax.step import make_eval_step, next_token_loss
from llama_jax.train import train


def numbers(schedule: Schedule, num_steps: int) -> list[int]:
    return [schedule.batch(step) for step in range(num_steps)]


def test_a_step_takes_the_batch_of_its_number():
    assert numbers(Schedule(), 5) == [0, 1, 2, 3, 4]
    assert Schedule().batch(10**12) == 10**12


def test_an_entry_holds_from_its_step_to_the_next():
    schedule = Schedule((Entry(0, 0), Entry(2, 10), Entry(4, 7)))
    assert numbers(schedule, 6) == [0, 1, 10, 11, 7, 8]


def test_a_skip_is_an_entry():
    once = Schedule((Entry(0, 0), Entry(3, 5)))
    assert numbers(once, 6) == [0, 1, 2, 5, 6, 7]
    twice = Schedule((*once.entries, Entry(4, 7)))
    assert numbers(twice, 6) == [0, 1, 2, 5, 7, 8]
    assert numbers(Schedule((Entry(0, 3),)), 3) == [3, 4, 5]  # from the first step on


def test_a_resumed_run_follows_the_schedule_of_its_checkpoint(trained, experiment, tmp_path):
    """After step 9, a skip of two batches: step 10 is computed from batch 11, and so on."""
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    origin, execution = origin_of(experiment), experiment.execution
    shutil.rmtree(workdir / "checkpoints/12")
    skipped = Schedule((Entry(0, 0), Entry(9, 11)))
    mesh = make_mesh(execution.mesh, jax.devices())
    with jax.set_mesh(mesh):
        restored = checkpoint.restore_newest(workdir, None, experiment, origin)
        assert restored is not None
        state, schedule, _ = restored
        assert (int(state.step), schedule) == (9, Schedule())
        sharding = batch_sharding(mesh, execution.mesh, "ABT")
        batch = next(train_batches(experiment.data, 1, sharding, iter([11, 12])))
        one = {name: array[0] for name, array in batch.items()}
        eval_step = make_eval_step(next_token_loss(execution))
        loss, targets = eval_step(state.params, state.frozen, one)
        shutil.rmtree(workdir / "checkpoints/9")
        with managers.open_manager(workdir, experiment.upkeep) as manager:
            checkpoint.save(manager, state, experiment, skipped, origin)
    assert checkpoint.read_meta(workdir, 9).schedule == skipped
    train(experiment, workdir, accept_changes=False)
    assert checkpoint.read_meta(workdir, 12).schedule == skipped
    before, after = losses(trained), losses(tmp_path / "run")
    assert list(after) == list(range(1, 13))
    assert [step for step in after if after[step] == before[step]] == list(range(1, 10))
    np.testing.assert_allclose(after[10], float(loss) / int(targets), rtol=1e-5)
