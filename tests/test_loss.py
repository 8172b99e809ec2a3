"""The chunked loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.config import (
    MeshConfig,
)
from llama_jax.loss import cross_entropy
from llama_jax.sharding import make_mesh


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(replica=2, fsdp=2, tensor=2)], ids=str)
def test_chunked_loss_equals_the_plain_one(monkeypatch, mesh):
    monkeypatch.setattr("llama_jax.loss.LOSS_CHUNK", 7)  # does not divide the tokens
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 10, 16)).astype(np.float32)
    head = rng.normal(size=(16, 32)).astype(np.float32)
    targets = rng.integers(-1, 32, (4, 10)).astype(np.int32)

    def plain(x, head):
        each = optax.softmax_cross_entropy_with_integer_labels(x @ head, jnp.maximum(targets, 0))
        return jnp.sum(each * (targets >= 0))

    expected, expected_grads = jax.value_and_grad(plain, argnums=(0, 1))(x, head)
    num_devices = mesh.replica * mesh.fsdp * mesh.tensor
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:num_devices])):
        args = jnp.asarray(x), jnp.asarray(head), jnp.asarray(targets)
        (loss, count), grads = jax.jit(
            jax.value_and_grad(
                lambda x, head, t: (3 * cross_entropy(x, head, t)[0], cross_entropy(x, head, t)[1]),
                argnums=(0, 1),
                has_aux=True,
            )
        )(*args)
        alone, _ = jax.jit(cross_entropy)(*args)
    assert int(count) == (targets >= 0).sum()
    np.testing.assert_allclose([loss / 3, alone], expected, rtol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got / 3, want, rtol=1e-4, atol=1e-5)
