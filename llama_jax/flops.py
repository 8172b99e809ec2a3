"""Parameters and floating-point operations: the arithmetic behind MFU and HFU.

MFU = tokens/s * model FLOPs per token / peak. Model FLOPs are what the mathematics needs: 6 for
each parameter that multiplies (forward 2, backward 4) and causal attention. HFU puts the FLOPs that
the traced program executes in their place: recomputation and masked scores count, too.
"""

import math
import time

from llama_jax.config import ModelConfig, UserError
from llama_jax.hardware import CHIP_OF_KIND

HEAD, TABLE = "lm_head_DV", "embed_VD"
# The parameters in model.py by which every token is multiplied once.
MATRICES = (
    *("wq_DGRK", "wk_DGK", "wv_DGK", "wo_GRKD"),
    *("w_gate_DF", "w_up_DF", "w_down_FD", HEAD),
)


def num_params(cfg: ModelConfig) -> int:
    """Return the exact number of parameters, embeddings included."""
    from llama_jax.model import param_shapes

    return sum(map(math.prod, param_shapes(cfg).values()))


def num_matmul_params(cfg: ModelConfig) -> int:
    """Return the number of parameters that take part in a matrix product: no norm scales, no
    embedding table but the head.

    Raise UserError for a parameter of which it is not known whether it does.
    """
    from llama_jax.model import param_shapes

    shapes, total = param_shapes(cfg), 0
    for path, shape in shapes.items():
        name = path.rpartition("/")[2]
        if name in MATRICES or (name == TABLE and HEAD not in shapes):
            total += math.prod(shape)
        elif name != TABLE and not is_vector(path, shape):
            raise UserError(
                f"model: the FLOPs of parameter {path} {shape} are not known; if every token is "
                f"multiplied by it once, add {name!r} to MATRICES in llama_jax/flops.py, or else "
                "count it in num_matmul_params there"
            )
    return total


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter of param_shapes is one in each layer, as the scale of a norm."""
    return len(shape) - name.startswith("layers/") == 1


def model_flops_per_token(cfg: ModelConfig, seq_len: int) -> int:
    """Return the FLOPs of forward and backward pass. Attention: q k^T and weights v are 2 * T * D
    each, forward; three times that with backward; half of it because a token sees T/2 others on
    average."""
    return 6 * num_matmul_params(cfg) + 6 * cfg.num_layers * seq_len * cfg.embed_dim


def executed_flops(jaxpr) -> int:
    """Return the FLOPs of all matrix products in a traced program, over all devices, loops
    multiplied out.

    A kernel is taken to be causal attention: of its grid's last two dimensions, tiles of queries
    and of keys in either order, it computes those that the diagonal does not cut off.
    """
    total = 0
    for eqn in jaxpr.eqns:
        times = 1
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(lhs[i] for i in contracted)
        elif eqn.primitive.name == "scan":
            times = eqn.params["length"]
        elif eqn.primitive.name == "shard_map":  # its body's shapes are one device's
            times = eqn.params["mesh"].size
        elif eqn.primitive.name == "pallas_call":
            *outer, n, m = eqn.params["grid_mapping"].grid
            times = math.prod(outer) * sum(b * n < (a + 1) * m for a in range(n) for b in range(m))
        elif eqn.primitive.name == "cond":
            total += max(executed_flops(branch.jaxpr) for branch in eqn.params["branches"])
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * executed_flops(inner)
    return total


def peak_flops() -> tuple[float, str]:
    """Return the FLOP/s of all devices together, and where the figure is from: the data sheet, or,
    for a kind of device that hardware.py lacks, what a large fp32 matrix product reaches here."""
    import jax

    kind = jax.devices()[0].device_kind
    if kind in CHIP_OF_KIND:
        peak = CHIP_OF_KIND[kind].peak_flops * jax.device_count()
        return peak, f"data sheet, {kind}, bf16"
    # The CPU's devices share its cores: there the product measures all of a process's devices.
    cpu = jax.default_backend() == "cpu"
    times, size = (jax.process_count(), 1024) if cpu else (jax.device_count(), 8192)
    return times * measured_matmul_flops(size), "measured here, fp32 matrix product"


def measured_matmul_flops(size: int, rounds: int = 8, dtype: str = "float32") -> float:
    """Return the FLOP/s of the best of a few size x size matrix products on the first device."""
    import jax
    import jax.numpy as jnp

    # On one device, whatever mesh is at hand: the CPU's devices would all do it in turn.
    with jax.set_mesh(jax.sharding.Mesh(jax.local_devices()[:1], ("all",))):
        a = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul)
        product(a, a).block_until_ready()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            product(a, a).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
