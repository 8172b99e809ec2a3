"""AdamW with warm-up and cosine decay, as in section 2.3 of the paper."""

from collections.abc import Callable

import jax
import optax

from llama_jax.config import OptimizerConfig


def learning_rate_schedule(
    cfg: OptimizerConfig, num_steps: int
) -> Callable[[int | jax.Array], jax.Array]:
    """Return the learning rate as a function of the step.

    Linear to peak_lr over warmup_steps, then a cosine to a fraction of it at num_steps.
    """
    return optax.warmup_cosine_decay_schedule(  # pyright: ignore[reportReturnType]
        init_value=0.0,
        peak_value=cfg.peak_lr,
        warmup_steps=cfg.warmup_steps,
        decay_steps=num_steps,
        end_value=cfg.peak_lr * cfg.final_lr_ratio,
    )


def decay_mask(params, no_decay: tuple[str, ...]):
    """Mark each parameter that is decayed. By name: a stacked norm scale is a matrix, too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(name in jax.tree_util.keystr(path) for name in no_decay), params
    )


def make_optimizer(cfg: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return AdamW behind clipping by the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            learning_rate_schedule(cfg, num_steps),  # pyright: ignore[reportArgumentType]
            b1=cfg.b1,
            b2=cfg.b2,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            mask=lambda params: decay_mask(params, cfg.no_decay),
        ),
    )
