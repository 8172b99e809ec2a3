"""The training loop. It wires; what is computed is in step.py, what is read in data/batches.py."""

import time
from collections.abc import Callable

import jax
from etils import epath

from llama_jax.attention import check_platform
from llama_jax.config import Experiment, ModelConfig, Upkeep, UserError
from llama_jax.data import store, tokenizer
from llama_jax.data.batches import check_held_out, train_batches
from llama_jax.data.schedule import Schedule
from llama_jax.evaluation.perplexity import validation_losses
from llama_jax.experiment import differences, from_json, to_json
from llama_jax.flops import executed_flops, num_params
from llama_jax.guards.agreement import agree
from llama_jax.guards.monitor import FIRST_STEPS, Monitor
from llama_jax.guards.pod import Pod
from llama_jax.guards.saves import Saves
from llama_jax.guards.spikes import RollBack, Spikes
from llama_jax.guards.stop import Stop
from llama_jax.model import Llama
from llama_jax.place import in_bucket
from llama_jax.plain_file import plain
from llama_jax.run import checkpoint, local_checkpoints, managers
from llama_jax.run.attempt import Attempt
from llama_jax.run.checkpoint import Origin
from llama_jax.run.loss_figure import plot_losses
from llama_jax.run.metrics import check_wandb
from llama_jax.run.profile import Profile
from llama_jax.run.workdir import config_file, profile_dir, tokenizer_file, write_whole
from llama_jax.sharding import batch_sharding, check_host_memory, mesh_of
from llama_jax.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
    next_token_loss,
)


def train(
    experiment: Experiment,
    workdir: epath.Path,
    accept_changes: bool,
    profile_steps: int = 0,
    load_init: Callable[[Experiment], Llama] | None = None,
    pod: Pod | None = None,
    began: float | None = None,
) -> None:
    """Train to run.num_steps, going on from the newest checkpoint in workdir if there is one.

    accept_changes: go on even if workdir was begun with another experiment.
    profile_steps: trace this many steps into workdir/profile, for TensorBoard or XProf.
    load_init: returns the weights of experiment.init, as opened.initial_params does.
    pod: the other processes of the job. began: time.time() at this one's start; None: now.
    Raises UserError for what does not fit together, Diverged if the loss does and run.on_spike does
    not help, Stopped if SIGTERM or SIGHUP asked for it, OSError if too much could not be saved.
    """
    data = experiment.data
    attempt = Attempt(workdir, time.time() if began is None else began)

    def check_all() -> tuple[jax.sharding.Mesh, Origin]:
        mesh = check(experiment, workdir, accept_changes)
        origin = Origin(store.digest(data), tokenizer.sha256(data.tokenizer))
        store.check_tokenizer(data, experiment.model.vocab_size)
        return mesh, origin

    mesh, origin = agree(experiment, check_all)
    local = local_checkpoints.find(experiment.upkeep, workdir, attempt)
    rolled_back = None
    with jax.set_mesh(mesh):
        while True:
            try:
                return train_from_newest(
                    *(experiment, workdir, local, mesh, origin, profile_steps, load_init),
                    *(attempt, pod, rolled_back),
                )
            except RollBack as e:
                rolled_back = e.after(rolled_back)
                local_checkpoints.keep_only(local, None)  # it goes back to one of the workdir


def train_from_newest(
    experiment: Experiment,
    workdir: epath.Path,
    local: epath.Path | None,
    mesh: jax.sharding.Mesh,
    origin: Origin,
    profile_steps: int,
    load_init: Callable[[Experiment], Llama] | None,
    attempt: Attempt,
    pod: Pod | None,
    rolled_back: RollBack | None,
) -> None:
    """Train as train() does, on the mesh of jax.set_mesh, but raise RollBack where it would go on
    from the newest checkpoint. local: see run/local_checkpoints.py. origin: of a run that begins
    here."""
    data, run, execution = experiment.data, experiment.run, experiment.execution

    # 1. The newest checkpoint of this workdir, else experiment.init, else random weights.
    state, schedule, origin = begin(experiment, workdir, local, origin, load_init)
    start = int(jax.device_get(state.step))
    if start >= run.num_steps:
        return say_it_is_trained(workdir, start, run.num_steps)
    attempt.begin(start)
    if rolled_back is not None:
        schedule = schedule.from_step(start, rolled_back.next_batch)

    # 2. The data from there on: the schedule gives a step its batch, and batch n is f(n).
    check_held_out(data, experiment.upkeep.eval_rows)
    numbers = map(schedule.batch, range(start, run.num_steps + 1))
    sharding = batch_sharding(mesh, execution.mesh, "ABT")
    batches = train_batches(data, execution.micro_batches, sharding, numbers)
    batch = next(batches)

    # 3. One program for every step.
    attempt.enter("compile")
    spikes, loss = Spikes(run, workdir, start), next_token_loss(execution)
    traced = make_train_step(experiment, loss).trace(state, batch, *spikes.limits(start, mesh))
    traced_flops = executed_flops(traced.jaxpr.jaxpr)
    train_step, eval_step = traced.lower().compile(), make_eval_step(loss)

    watched = (experiment, workdir, schedule, start, traced_flops)
    with (
        managers.open_manager(workdir, experiment.upkeep) as manager,
        managers.open_local_manager(local) as local_manager,
        Monitor(*watched, manager, attempt, spikes, pod) as monitor,
        Stop() as stop,
    ):
        saves, local_saves = tiers(manager, local_manager, experiment.upkeep, start, monitor)
        keep_with_run(experiment, workdir)  # from here on the workdir is this experiment's
        dispatched = None  # the step before: its figures are fetched while the device computes
        span = range(start + FIRST_STEPS, run.num_steps)[:profile_steps]
        profile = Profile(profile_dir(workdir), span)
        for step in range(start, run.num_steps):
            profile.before(step)
            limits = spikes.limits(step + 1, mesh)
            with (
                jax.transfer_guard("disallow"),  # the host waits for nothing here
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                state, metrics = train_step(state, batch, *limits)
            if profile.after(step, metrics):
                monitor.note(f"profiled steps {span[0]} to {step} into {profile_dir(workdir)}")
            with attempt.input(metrics):
                batch = next(batches)
            if dispatched is not None:
                monitor.step(*dispatched)
            dispatched = (step + 1, metrics)
            to_evaluate, to_save, to_save_locally = due(experiment, step + 1)
            to_save |= saves.due(step + 1) | (to_stop := stop.asked(step + 1))
            if to_evaluate or to_save or to_save_locally:
                monitor.step(*dispatched)
                monitor.check_state(step + 1, state)  # first: what is not finite is never kept
                dispatched = None
            if to_evaluate:  # before the save, or a kill between the two would lose it
                monitor.enter("evaluate")
                got = validation_losses(eval_step, state.params, state.frozen, experiment, mesh)
                monitor.validation(step + 1, got)
            if to_save or to_save_locally:
                monitor.enter("save")
                monitor.flush()  # before it counts, or a kill between the two would lose rows
                tier = saves if to_save else local_saves
                tier.save(step + 1, state, experiment, schedule, origin)
            if to_stop and step + 1 < run.num_steps:
                saves.finish(step + 1, state, experiment, schedule, origin)
                raise stop.after(step + 1, workdir)
            if to_evaluate or to_save or to_save_locally:
                monitor.enter("step")
        monitor.enter("save")
        saves.finish(run.num_steps, state, experiment, schedule, origin)
        monitor.summary()


def check(experiment: Experiment, workdir: epath.Path, accept_changes: bool) -> jax.sharding.Mesh:
    """Return the mesh. Raise UserError for all that can be refused before there is a store."""
    check_wandb(experiment.upkeep.wandb_project)
    check_workdir(experiment, workdir, accept_changes)
    local_checkpoints.check(experiment.upkeep)
    check_platform(experiment.execution)
    check_memory(experiment.model)
    return mesh_of(experiment, jax.devices())


def check_memory(model: ModelConfig) -> None:
    """Raise UserError if the devices are CPUs whose memory is too small for the state alone. Others
    say so themselves."""
    if jax.default_backend() == "cpu":
        state = f"model: {num_params(model):,} parameters and AdamW's two moments"
        check_host_memory(3 * 4 * num_params(model), state)


def begin(
    experiment: Experiment,
    workdir: epath.Path,
    local: epath.Path | None,
    origin: Origin,
    load_init: Callable[[Experiment], Llama] | None,
) -> tuple[TrainState, Schedule, Origin]:
    """Return the state to go on from, its schedule and what it is made from."""
    if restored := checkpoint.restore_newest(workdir, local, experiment, origin):
        return restored
    if experiment.init is None:
        return jax.jit(lambda: init_state(experiment))(), Schedule(), origin
    if load_init is None:
        raise UserError(f"init: got {experiment.init!r}, but train() no load_init; expected both")
    state, origin = checkpoint.start(experiment, origin, load_init(experiment))
    return state, Schedule(), origin


def due(experiment: Experiment, step: int) -> tuple[bool, bool, bool]:
    """Say whether to evaluate, to save, and to save on the hosts' disks, after so many updates."""
    last, upkeep = step == experiment.run.num_steps, experiment.upkeep
    periods = (upkeep.eval_every, upkeep.checkpoint_every, upkeep.local_every or 0)
    evaluate, save, save_locally = (bool(every) and step % every == 0 for every in periods)
    return last or evaluate, last or save, save_locally


def say_it_is_trained(workdir: epath.Path, step: int, num_steps: int) -> None:
    plot_losses(workdir)
    print(f"{workdir} is trained to step {step} of {num_steps}: nothing left to do")


def tiers(
    manager: managers.Manager,
    local_manager: managers.Manager | None,
    upkeep: Upkeep,
    start: int,
    monitor: Monitor,
) -> tuple[Saves, Saves]:
    """Return the saves in the workdir, and those on the hosts' disks: the former if there are none,
    as none is ever due."""
    told = (start, monitor.trouble, monitor.watchdog.feed)
    saves = Saves(manager, upkeep.checkpoint_every, *told)
    if local_manager is None or upkeep.local_every is None:
        return saves, saves
    return saves, Saves(local_manager, upkeep.local_every, *told, local=True)


def check_workdir(experiment: Experiment, workdir: epath.Path, accept_changes: bool) -> None:
    """Raise UserError if it cannot be written to, or was begun with another experiment."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f"writable_{jax.process_index()}.tmp"
        probe.write_text("")
        probe.unlink()
        if in_bucket(workdir):
            from llama_jax import bucket

            bucket.check_kind(workdir)
    except OSError as e:
        raise UserError(f"workdir: cannot write to {str(workdir)!r}: {e.strerror or e}") from e
    path, newest = config_file(workdir), checkpoint.newest_meta(workdir)
    begun = (
        from_json(plain(path).read_bytes(), str(path))
        if path.exists()
        else newest and newest.experiment
    )
    if newest is not None and newest.imported:
        if not accept_changes:
            raise UserError(
                f"workdir: {workdir} holds an imported model; to train from it, give --set "
                f"init={workdir} and another --workdir, or --accept-changes to train in this one"
            )
    elif begun is not None:
        changes = differences(begun, experiment)
        if changes and not accept_changes:
            raise UserError(
                f"workdir: {workdir} was begun with another experiment: {'; '.join(changes)}; "
                "use another --workdir, or --accept-changes to go on with the new values"
            )
    own = tokenizer_file(workdir)
    if own and own.read_bytes() != tokenizer.read(experiment.data.tokenizer):
        raise UserError(
            f"data.tokenizer: {experiment.data.tokenizer} is not the tokenizer that {workdir} was "
            f"begun with, which is {own}; bring that one back or use another --workdir"
        )


def keep_with_run(experiment: Experiment, workdir: epath.Path) -> None:
    """Write what the workdir holds besides results: config.json and the tokenizer."""
    if jax.process_index() == 0:
        if not tokenizer_file(workdir):
            content = tokenizer.read(experiment.data.tokenizer)
            write_whole(workdir / tokenizer.file_name(content), content)
        write_whole(config_file(workdir), to_json(experiment))
