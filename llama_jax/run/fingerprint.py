"""A number for an array that does not depend on how the array is spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 2**26  # bytes that are copied at a time


def fingerprints(arrays: dict[str, jax.Array]) -> dict[str, int]:
    """Return the fingerprint of each array, by its name."""
    return {name: int(x) for name, x in jax.device_get(_fingerprint_all(arrays)).items()}


@jax.jit
def _fingerprint_all(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(fingerprint, arrays)


def not_finite(arrays: dict[str, jax.Array]) -> list[str]:
    """Return the names of the arrays with a value that is infinite or no number."""
    finite = jax.device_get(_all_finite(arrays))
    return [name for name in arrays if not finite[name]]


@jax.jit
def _all_finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), arrays)


def fingerprint_of(values: np.ndarray, start: int) -> int:
    """Compute what a part of an array adds to the array's fingerprint, a bounded copy at a time.

    start: the index of the part's first element among all of the array's, in C order.
    """
    size = values[0].size
    rows = max(1, PIECE // values[0].nbytes)
    return sum(
        int(
            _fingerprint_part(
                values[i : i + rows].reshape(-1), np.uint32((start + i * size) % 2**32)
            )
        )
        for i in range(0, len(values), rows)
    )


def fingerprint(x: jax.Array, start: int | jax.Array = 0) -> jax.Array:
    """Sum, modulo 2^32, each element's bits times an odd hash of its index.

    Any one changed bit changes it; so do elements or blocks that swap, but once in billions of
    times.

    start: the index of x in an array, whose fingerprint is the sum of its parts'.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    index = jnp.zeros_like(bits)
    for axis, size in enumerate(x.shape):
        iota = jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
        )
        index = index * jnp.uint32(size) + iota
    index = index + jnp.uint32(start)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons' lowbias32
        index = (index ^ (index >> shift)) * jnp.uint32(factor)
    return jnp.sum(bits * ((index ^ (index >> 16)) | 1), dtype=jnp.uint32)


_fingerprint_part = jax.jit(fingerprint)
