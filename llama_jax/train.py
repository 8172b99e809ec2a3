"""The training loop. It wires; what is computed is in step.py, what is read in data/batches.py."""

import hashlib

import jax
from etils import epath

from llama_jax import checkpoint
from llama_jax.attention import check_platform
from llama_jax.config import Experiment, UserError, differences, from_json, to_json
from llama_jax.data import store, tokenizer
from llama_jax.data.batches import train_batches
from llama_jax.evaluation.perplexity import validation_losses
from llama_jax.figures import plot_losses
from llama_jax.flops import executed_flops
from llama_jax.metrics import check_wandb
from llama_jax.report import Report
from llama_jax.sharding import batch_sharding, make_mesh
from llama_jax.step import init_state, make_eval_step, make_train_step

STEPS_BEFORE_PROFILE = 2  # the first steps of a process wait for compilation and for data


def train(
    experiment: Experiment, workdir: epath.Path, accept_changes: bool, profile_steps: int = 0
) -> None:
    """Trains to run.num_steps, going on from the newest checkpoint in workdir if there is one.

    accept_changes: go on even if workdir was begun with another experiment.
    profile_steps: trace this many steps into workdir/profile, for TensorBoard or XProf.
    Raises UserError for what does not fit together, NonFiniteLoss if the loss does not stay finite.
    """
    data, run = experiment.data, experiment.run
    digest = store.digest(data)
    check_vocabulary(experiment)
    check_wandb(run.wandb_project)
    check_workdir(experiment, workdir, accept_changes)
    check_platform(experiment.model)
    mesh = make_mesh(experiment.mesh, jax.devices())
    sharding = batch_sharding(mesh, experiment.mesh, "ABT")

    with jax.set_mesh(mesh):
        # 1. The newest checkpoint of this workdir, else the initial weights.
        state = checkpoint.restore_newest(workdir, experiment, digest)
        if state is None:
            state = jax.jit(lambda: init_state(experiment))()
        start = int(jax.device_get(state.step))
        if start >= run.num_steps:
            plot_losses(workdir)
            print(f"{workdir} is trained to step {start} of {run.num_steps}: nothing left to do")
            return

        # 2. The data from there on: batch n is a function of n.
        batches = train_batches(data, run.micro_batches, sharding, start)
        batch = next(batches)

        # 3. One program for every step.
        traced = make_train_step(experiment).trace(state, batch)
        traced_flops = executed_flops(traced.jaxpr.jaxpr)
        train_step = traced.lower().compile()
        eval_step = make_eval_step()

        with (
            checkpoint.open_manager(workdir, experiment) as manager,
            Report(experiment, workdir, start, traced_flops, manager) as report,
        ):
            write_config(experiment, workdir)  # from here on the workdir is this experiment's
            dispatched = None  # the step before: its figures are fetched while the device computes
            profile = range(start + STEPS_BEFORE_PROFILE, run.num_steps)[:profile_steps]
            for step in range(start, run.num_steps):
                if profile and step == profile[0]:
                    jax.profiler.start_trace(workdir / "profile")
                with (
                    jax.transfer_guard("disallow"),  # the host waits for nothing here
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                ):
                    state, metrics = train_step(state, batch)
                if profile and step == profile[-1]:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                    report.note(f"profiled steps {profile[0]} to {step} into {workdir / 'profile'}")
                batch = next(batches)
                if dispatched is not None:
                    report.step(*dispatched)
                dispatched = (step + 1, metrics)
                last = step + 1 == run.num_steps
                to_evaluate = last or (step + 1) % run.eval_every == 0
                to_save = last or (step + 1) % run.checkpoint_every == 0
                if to_evaluate or to_save:
                    report.step(*dispatched)  # first: a state that is not finite is never kept
                    dispatched = None
                if to_evaluate:  # before the save, or a kill between the two would lose it
                    losses = validation_losses(eval_step, state.model, experiment, mesh)
                    report.validation(step + 1, losses)
                if to_save:
                    checkpoint.save(manager, state, experiment, digest)
                if to_evaluate or to_save:
                    report.restart_clock()
            manager.wait_until_finished()
            report.summary()


def check_workdir(experiment: Experiment, workdir: epath.Path, accept_changes: bool) -> None:
    """Raises UserError if it cannot be written to, or was begun with another experiment."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f"writable_{jax.process_index()}.tmp"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UserError(f"workdir: cannot write to {str(workdir)!r}: {e.strerror or e}") from e
    path = workdir / "config.json"
    changes = differences(from_json(path.read_text()), experiment) if path.exists() else []
    if changes and not accept_changes:
        raise UserError(
            f"workdir: {workdir} was begun with another experiment: {'; '.join(changes)}; "
            "use another --workdir, or --accept-changes to go on with the new values"
        )


def write_config(experiment: Experiment, workdir: epath.Path) -> None:
    if jax.process_index() == 0:
        unfinished = workdir / "config.json.tmp"
        unfinished.write_text(to_json(experiment))
        unfinished.replace(workdir / "config.json")


def check_vocabulary(experiment: Experiment) -> None:
    """Raises UserError unless the store was made with a tokenizer that is the experiment's."""
    data = experiment.data
    wanted = hashlib.sha256(tokenizer.find(data.tokenizer).read_bytes()).hexdigest()
    for source, splits in store.read_index(data).items():
        made_with = {shard.tokenizer_sha256 for split in splits.values() for shard in split.shards}
        if made_with != {wanted}:
            raise UserError(
                f"data.tokenizer: got {data.tokenizer!r}, but source {source} of the token store "
                f"{data.store} was made with another; set data.store to another directory, too"
            )
        size = splits["train"].vocab_size
        if size > experiment.model.vocab_size:
            raise UserError(
                f"model.vocab_size: got {experiment.model.vocab_size}, but the token store's "
                f"tokenizer has {size} pieces (source {source}); expected at least that"
            )
