"""Fingerprints of arrays."""

import jax
import numpy as np

from llama_jax.run import fingerprint
from llama_jax.sharding import make_mesh


def test_the_fingerprint_sees_a_bit_and_a_swap_but_not_the_mesh(experiment):
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    flipped, swapped = x.copy(), x.copy()
    flipped.view(np.int32)[3, 5] ^= 1
    swapped[:4], swapped[4:] = x[4:], x[:4]  # blocks, at a distance of a power of two
    mesh = make_mesh(experiment.execution.mesh, jax.devices())
    prints = []
    with jax.set_mesh(mesh):
        for value, spec in [
            (x, jax.P()), (x, jax.P("plane")), (x, jax.P(None, "plane")), (flipped, jax.P()),
            (swapped, jax.P()),
        ]:  # fmt: skip
            array = jax.device_put(value, jax.NamedSharding(mesh, spec))
            prints.append(fingerprint.fingerprints({"x": array})["x"])
    assert prints[0] == prints[1] == prints[2]
    assert len(set(prints)) == 3
