"""AdamW and its schedule, against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.steps import BASE, LOSS, packed_batch, replace
from llama_jax.config import (
    OptimizerConfig,
)
from llama_jax.optimizer import decay_mask, learning_rate_schedule
from llama_jax.step import init_state, make_train_step, next_token_loss


def test_one_update_is_adamw_by_its_formula(one_device):
    """The first step: m / sqrt(v) is the sign of the clipped gradient; decay is added, but not to
    norms (Loshchilov and Hutter, arXiv 1711.05101)."""
    experiment = replace(BASE, "optimizer", warmup_steps=0, peak_lr=1e-2, weight_decay=0.5)
    state = jax.jit(lambda: init_state(experiment))()
    batch = {k: jnp.asarray(v) for k, v in packed_batch(0).items()}
    before = jax.device_get(state.params)
    grads, targets = jax.jit(jax.grad(LOSS, has_aux=True))(state.params, None, batch)
    grads = jax.device_get(jax.tree.map(lambda g: g / targets, grads))
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    state, metrics = make_train_step(experiment, next_token_loss(experiment.execution))(
        state, {k: v[None] for k, v in batch.items()}
    )
    assert abs(float(metrics["grad_norm"]) - norm) < 1e-4 * norm
    scale = min(1.0, 1.0 / norm)

    def expected(path, w, g):
        g = g * scale
        decay = 0.0 if "norm" in jax.tree_util.keystr(path) else 0.5
        return w - 1e-2 * (g / (np.abs(g) + 1e-8) + decay * w)

    wanted = jax.tree_util.tree_map_with_path(expected, before, grads)
    for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_norms_are_not_decayed_though_they_are_stacked_matrices(one_device):
    model = jax.eval_shape(lambda: init_state(BASE)).params
    mask = decay_mask(model, BASE.optimizer.no_decay)
    decayed = {
        jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(mask) if m
    }
    assert len(decayed) == 9 and not any("norm" in name for name in decayed)


def test_schedule_is_the_papers():
    rate = learning_rate_schedule(OptimizerConfig(peak_lr=3e-4, warmup_steps=2000), 238_418)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(1000)), 1.5e-4, rtol=1e-6)
    np.testing.assert_allclose(float(rate(2000)), 3e-4, rtol=1e-6)
    middle = 2000 + (238_418 - 2000) // 2
    np.testing.assert_allclose(float(rate(middle)), (3e-4 + 3e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(float(rate(238_418)), 3e-5, rtol=1e-5)
