"""The attention kernels against the reference, which transformers are held against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.attention import cudnn, reference, splash
from llama_jax.config import MeshConfig
from llama_jax.sharding import activation_spec, make_mesh

KERNELS = {
    # The TPU's kernel, interpreted; tiles smaller than the row, so that some are skipped.
    "splash": lambda q, k, v, segments: splash(q, k, v, segments, 128, interpret=True),
    # The same call that cuDNN gets on a GPU, by XLA's own implementation.
    "cudnn": lambda q, k, v, segments: cudnn(q, k, v, segments, implementation="xla"),
}


@pytest.fixture(scope="module")
def qkv():
    """Scaled q [2, 512, 2 kv heads, 2, 128], k, v, and rows of two and of three documents."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 512, 2, 2, 128)) / np.sqrt(128)
    k, v = rng.normal(size=(2, 2, 512, 2, 128))
    place = np.arange(512)
    segments = np.stack([1 + (place >= 200), 1 + (place >= 130) + (place >= 300)])
    return *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(segments, jnp.int32)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=2, tensor=2)], ids=["1", "2x2"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_equal_the_reference_and_so_do_their_gradients(qkv, kernel, mesh):
    devices = jax.devices()[: mesh.fsdp * mesh.tensor]
    cotangent = np.random.default_rng(1).normal(size=qkv[0].shape).astype(np.float32)

    def value_and_grads(attend, q, k, v, segments):
        def loss(q, k, v):
            out = attend(q, k, v, segments)
            return jnp.sum(out * cotangent), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    layout = make_mesh(mesh, devices)
    with jax.set_mesh(layout):
        dims = "BTGRK", "BTGK", "BTGK", "BT"
        args = [
            jax.device_put(x, jax.NamedSharding(layout, activation_spec(d)))
            for x, d in zip(qkv, dims, strict=True)
        ]
        cotangent = jax.device_put(cotangent, args[0].sharding)
        run = jax.jit(value_and_grads, static_argnums=0)
        (_, expected), expected_grads = run(reference, *args)
        (_, got), grads = run(KERNELS[kernel], *args)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * np.abs(b).max())
