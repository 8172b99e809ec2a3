"""Matrices in eight bits, for decoding, whose time goes into reading them."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Int8:
    """values * scale is the matrix, to within scale / 2: symmetric, with a scale an output."""

    values: jax.Array  # int8
    scale: jax.Array  # fp32, of the same rank, 1 along the last axis


def quantize(w: jax.Array) -> Int8:
    """Quantise a matrix whose last axis is what a product sums over."""
    largest = jnp.max(jnp.abs(w), axis=-1, keepdims=True).astype(jnp.float32)
    scale = jnp.where(largest == 0, 1.0, largest / 127)
    return Int8(values=jnp.round(w / scale).astype(jnp.int8), scale=scale)
