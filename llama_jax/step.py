"""The train state, the loss, and one optimizer step: pure functions. Shape letters: sharding.py."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from llama_jax.config import Execution, Experiment
from llama_jax.loss import cross_entropy
from llama_jax.model import Llama
from llama_jax.optimizer import learning_rate_schedule, make_optimizer


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32 scalar: the number of updates made
    params: Any  # fp32, what is trained: in pre-training the whole model, a Llama
    frozen: Any  # arrays of its own that the loss needs and nothing trains, or None
    opt_state: optax.OptState  # fp32, sharded as the parameters


Batch = dict[str, jax.Array]
# (params, frozen, batch) -> (sum over targets, their number): micro-batches then add up.
Loss = Callable[[Any, Any, Batch], tuple[jax.Array, jax.Array]]


def init_state(experiment: Experiment, params: Llama | None = None) -> TrainState:
    """Make the state before step 0. Trace it under jax.set_mesh; shardings are the model's.

    params: to start from. None: random ones.
    """
    if params is None:
        params = Llama(experiment.model, nnx.Rngs(params=experiment.run.seed))
    tx = make_optimizer(experiment.optimizer, experiment.run.num_steps)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=None,
        opt_state=tx.init(params),  # pyright: ignore[reportArgumentType]
    )


def next_token_loss(execution: Execution) -> Loss:
    """Return the loss of pre-training: the sum of the targets' cross-entropy in nats.

    params: a Llama. batch: int32 [B, T] tokens, segments, positions, targets; a target of -1 does
    not count.
    """

    def loss(params: Llama, frozen: None, batch: Batch) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.dtype(params.cfg.compute_dtype)
        # Cast once: all-gathers then move bf16.
        model = jax.tree.map(lambda w: w.astype(dtype), params)
        rows = (batch[name] for name in ("tokens", "segments", "positions"))
        x_BTD = model.hidden(*rows, execution)
        with jax.named_scope("loss"):
            return cross_entropy(x_BTD, model.head_DV, batch["targets"])

    return loss


def make_train_step(experiment: Experiment, loss: Loss):
    """Return the train step, (state, batch[, limit]) -> (state, metrics); state is donated.

    batch: [A, B, T] arrays, of which the loss takes [B, T]; gradients of the A slices are added up
    and divided by the batch's number of targets. metrics: fp32 scalars loss, grad_norm (before
    clipping) and learning_rate, and targets, their number. limit: fp32 scalar; if the loss is above
    it, or something is not finite, parameters and optimizer stay, and metrics' skipped is 1.
    """
    tx = make_optimizer(experiment.optimizer, experiment.run.num_steps)
    learning_rate = learning_rate_schedule(experiment.optimizer, experiment.run.num_steps)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch, limit: jax.Array | None = None):
        def accumulate(total, micro_batch):
            # The barrier keeps XLA from moving the reductions of the gradients out of this loop:
            # it would hold them unreduced, and libtpu 0.0.42 aborts on those in two stages.
            new = jax.lax.optimization_barrier(
                value_and_grad(state.params, state.frozen, micro_batch)
            )
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new), None

        if (
            jax.tree.leaves(batch)[0].shape[0] == 1
        ):  # no scan: its carry would be a second set of gradients
            only = {name: x_ABT[0] for name, x_ABT in batch.items()}
            total = value_and_grad(state.params, state.frozen, only)
        else:
            no_loss = jnp.zeros(()), jnp.zeros((), jnp.int32)
            zeros = jax.tree.map(
                lambda w: jnp.zeros_like(w, experiment.run.gradient_dtype), state.params
            )
            total, _ = jax.lax.scan(accumulate, (no_loss, zeros), batch)
        (total_loss, targets), grads = total
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / targets, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": total_loss / targets,
            "targets": targets,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
        }
        if limit is not None:
            good = (metrics["loss"] <= limit) & jnp.isfinite(metrics["grad_norm"])

            def choose(new: jax.Array, old: jax.Array) -> jax.Array:
                # The optimizer's own counts of steps go on, and so do learning rates.
                return jnp.where(good, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new

            before = state.params, state.opt_state
            params, opt_state = jax.tree.map(choose, (params, opt_state), before)
            metrics["skipped"] = 1 - good.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1, params=params, frozen=state.frozen, opt_state=opt_state
        )
        return state, metrics

    options = {name: value for name, value, _ in experiment.execution.compiler_options}
    return jax.jit(train_step, donate_argnums=0, compiler_options=options or None)


def make_eval_step(loss: Loss):
    """Return the compiled loss, of a batch [B, T]."""
    return jax.jit(loss)
