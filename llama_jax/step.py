"""The train state, the loss, and one optimizer step: pure functions. Shape letters: sharding.py."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from llama_jax.config import Experiment
from llama_jax.loss import cross_entropy
from llama_jax.model import Llama
from llama_jax.optimizer import make_optimizer, schedule


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32 scalar: the number of updates made
    model: Llama  # fp32 parameters
    opt_state: optax.OptState  # fp32, sharded as the parameters


def init_state(experiment: Experiment) -> TrainState:
    """The state before step 0. Trace it under jax.set_mesh; shardings come from the model's."""
    model = Llama(experiment.model, nnx.Rngs(params=experiment.run.seed))
    tx = make_optimizer(experiment.optimizer, experiment.run.num_steps)
    return TrainState(step=jnp.zeros((), jnp.int32), model=model, opt_state=tx.init(model))


def loss_sum(model: Llama, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Sum over targets of the cross-entropy in nats, and their number: micro-batches then add up.

    batch: int32 [B, T] tokens, segments, positions, targets; a target of -1 does not count.
    """
    dtype = jnp.dtype(model.cfg.compute_dtype)
    model = jax.tree.map(lambda w: w.astype(dtype), model)  # cast once: all-gathers then move bf16
    x_BTD = model.hidden(batch["tokens"], batch["segments"], batch["positions"])
    with jax.named_scope("loss"):
        return cross_entropy(x_BTD, model.head_DV, batch["targets"])


def make_train_step(experiment: Experiment):
    """The compiled train step, (state, batch) -> (state, metrics); state is donated.

    batch: int32 [A, B, T] arrays as loss_sum takes them; gradients of the A slices are added up and
    divided by the batch's number of targets. metrics: fp32 scalars loss, grad_norm (before
    clipping) and learning_rate, and targets, their number.
    """
    tx = make_optimizer(experiment.optimizer, experiment.run.num_steps)
    learning_rate = schedule(experiment.optimizer, experiment.run.num_steps)
    value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        def accumulate(total, micro_batch):
            # The barrier keeps XLA from moving the reductions of the gradients out of this loop:
            # it would hold them unreduced, and libtpu 0.0.42 breaks off at those in two stages.
            new = jax.lax.optimization_barrier(value_and_grad(state.model, micro_batch))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new), None

        if batch["tokens"].shape[0] == 1:  # no scan: its carry would be a second set of gradients
            total = value_and_grad(state.model, {name: x_ABT[0] for name, x_ABT in batch.items()})
        else:
            no_loss = jnp.zeros(()), jnp.zeros((), jnp.int32)
            zeros = jax.tree.map(
                lambda w: jnp.zeros_like(w, experiment.run.gradient_dtype), state.model
            )
            total, _ = jax.lax.scan(accumulate, (no_loss, zeros), batch)
        (loss, targets), grads = total
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / targets, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.model)
            model = optax.apply_updates(state.model, updates)
        metrics = {
            "loss": loss / targets,
            "targets": targets,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
        }
        return TrainState(step=state.step + 1, model=model, opt_state=opt_state), metrics

    options = {name: value for name, value, _ in experiment.run.compiler_options}
    return jax.jit(train_step, donate_argnums=0, compiler_options=options or None)


def make_eval_step():
    """The compiled (model, batch [B, T]) -> (sum of losses in nats, number of targets)."""
    return jax.jit(loss_sum)
