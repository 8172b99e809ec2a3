"""Programs that libtpu compiles, and its devices, beside what the plan knows of them."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.programs import V5E
from llama_jax.config import UserError
from llama_jax.hardware import GIB, parse_slice
from llama_jax.plan.compile import devices
from llama_jax.plan.estimate import (
    Estimate,
    estimate,
)
from llama_jax.plan.hlo import CAUSAL, DIAGONAL_WASTE

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; requirements-tpu.txt has it and needs no TPU",
)


@pytest.fixture(autouse=True)
def optimized():
    """Programs as plans are made of: see conftest.py."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_devices_without_libtpu_name_the_remedy(monkeypatch):
    from jax.experimental import topologies

    def get_topology_desc(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    with pytest.raises(UserError, match="pip install -r requirements-tpu.txt"):
        devices(parse_slice("v5e:8x8"))
    with pytest.raises(UserError, match="h100:8: programs are compiled for TPUs only"):
        devices(parse_slice("h100:8"))


# Programs of libtpu


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_chips_are_as_libtpu_has_them(name):
    """The kind and number of the devices, and the HBM that is left to a program."""
    where = parse_slice(name)
    found = devices(where)
    assert len(found) == where.num_devices
    assert {device.device_kind for device in found} == {where.chip.device_kind}
    sharding = jax.sharding.SingleDeviceSharding(found[0])
    huge = jax.ShapeDtypeStruct((2**38,), jnp.int8, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Ran out of memory on HBM") as error:
        jax.jit(jnp.negative).lower(huge).compile()
    (available,) = re.findall(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    assert float(available) * GIB == where.chip.hbm_bytes


@needs_libtpu
def test_a_scan_of_matmuls_is_as_many_matmuls():
    (device,) = devices(parse_slice("v5e:1x1"))

    def of(layers: int) -> Estimate:
        def scan(x, w):
            return lax.scan(lambda x, w: (x @ w, None), x, w)[0]

        sharding = jax.sharding.SingleDeviceSharding(device)
        x = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=sharding)
        w = jax.ShapeDtypeStruct((layers, 1024, 1024), jnp.bfloat16, sharding=sharding)
        hlo = jax.jit(scan).lower(x, w).compile().as_text()
        assert hlo is not None
        return estimate(hlo, V5E, {"fsdp": 1}, (1, 1))

    three, nine = of(3), of(9)
    flops = 2 * 4096 * 1024 * 1024
    assert (three.matmul_flops, nine.matmul_flops) == (3 * flops, 9 * flops)
    assert nine.breakdown["matmul"] == pytest.approx(3 * three.breakdown["matmul"])
    # libtpu expects of a matmul of this size between 70% and all of the peak.
    assert 0.7 < flops / V5E.peak_flops / (three.breakdown["matmul"] / 3) <= 1.0


@needs_libtpu
def test_a_gather_over_an_axis_and_a_matmul_split_over_another():
    where = parse_slice("v5e:4x4")
    mesh = jax.make_mesh((4, 4), ("fsdp", "tensor"), (AxisType.Auto,) * 2, devices=devices(where))

    def array(spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    out = NamedSharding(mesh, P(None, "tensor"))
    step = jax.jit(lambda x, w: (x @ w, w), out_shardings=(out, NamedSharding(mesh, P())))
    hlo = step.lower(array(P()), array(P(None, "tensor"))).compile().as_text()
    assert hlo is not None
    result = estimate(hlo, V5E, {"fsdp": 4, "tensor": 4}, where.shape)
    assert result.matmul_flops == 2 * 1024 * 1024 * 256
    (gather,) = result.collectives
    assert (gather.kind, gather.axis, gather.count) == ("all-gather", "tensor", 1)
    assert gather.bytes == 3 / 4 * 2 * 1024 * 1024


@needs_libtpu
def test_a_splash_attention_call():
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    (device,) = devices(parse_slice("v5e:1x1"))
    B, H, T, K = 2, 4, 1024, 128
    causal = splash_attention_mask.CausalMask((T, T))
    mask = splash_attention_mask.MultiHeadMask([causal] * H)
    kernel = splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1)
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((B, H, T, K), jnp.bfloat16, sharding=sharding)
    hlo = jax.jit(jax.vmap(kernel)).lower(x, x, x).compile().as_text()
    assert hlo is not None
    result = estimate(hlo, V5E, {"fsdp": 1}, (1, 1))
    flops = 2 * 2 * B * H * T * T * K * CAUSAL * DIAGONAL_WASTE
    assert result.attention_flops == pytest.approx(flops)
    assert result.breakdown["attention"] == pytest.approx(flops / (0.5 * V5E.peak_flops))
    assert (result.matmul_flops, result.unknown) == (0, ())
