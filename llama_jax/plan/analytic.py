"""Memory and time of the train step by arithmetic: for GPUs, and to choose what to compile.

Weights, optimiser and gradients are exact. What else is in memory, and the time, follow from the
shapes alone: see the bands in tests/test_plan.py.
"""

import dataclasses
import math

from llama_jax.config import LOSS_CHUNK, REMAT_POLICIES, Experiment, ModelConfig
from llama_jax.flops import (
    is_vector,
    model_flops_per_token,
    num_matmul_params,
    num_params,
)
from llama_jax.hardware import HOST_BANDWIDTH, Slice
from llama_jax.model import param_shapes

FP32, BF16 = 4, 2  # bytes
# As the compiler has it for 7B on v5e:8x8, where this misses its step by 2%.
MATMUL_EFFICIENCY = 0.8  # share of the peak
OTHER_COMPUTE = 0.08  # norms, rotations and casts, as a share of the matmuls
GATHER_OVERLAP = 0.85  # share of all-gather time hidden behind compute; sums hide none
HOST_SHARE = 0.5  # of the host's memory, that activations may take beside data and checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyticEstimate:
    """Analytic memory and time of one device for one step."""

    weights_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    activations_bytes: int
    offloaded_bytes: int
    buffers_bytes: int
    executed_flops: float
    breakdown: dict[str, float]  # seconds, of the kinds that estimate.py has

    @property
    def peak_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.optimizer_bytes
            + self.gradients_bytes
            + self.activations_bytes
            + self.buffers_bytes
        )

    @property
    def step_seconds(self) -> float:
        return sum(self.breakdown.values())


def estimate_analytically(experiment: Experiment, target: Slice) -> AnalyticEstimate:
    """Return the memory and time of a step on a slice, by its shapes alone."""
    model, execution = experiment.model, experiment.execution
    params = _device_params(experiment)
    kept, offloaded = _kept_per_token(experiment)
    tokens = _tokens(experiment)
    compute = BF16 if model.compute_dtype == "bfloat16" else FP32
    sums = BF16 if experiment.run.gradient_dtype == "bfloat16" else FP32
    executed = _executed_flops(experiment)
    return AnalyticEstimate(
        weights_bytes=FP32 * params,
        optimizer_bytes=2 * FP32 * params,
        # The layers' gradients of one micro-batch, and the sum over micro-batches.
        gradients_bytes=compute * params + (sums * params if execution.micro_batches > 1 else 0),
        activations_bytes=model.num_layers * tokens * kept,
        offloaded_bytes=model.num_layers * tokens * offloaded,
        buffers_bytes=_buffers(experiment),
        executed_flops=executed,
        breakdown=_seconds(experiment, target, executed, model.num_layers * tokens * offloaded),
    )


def host_seconds(offloaded_bytes: float, micro_batches: int, compute_seconds: float) -> float:
    """Return the seconds of a step that moves to and from the host's memory expose: activations
    leave in the forward pass, a third of the computation, and come back in the backward pass."""
    each_way = offloaded_bytes * micro_batches / HOST_BANDWIDTH
    return max(0.0, each_way - compute_seconds / 3) + max(0.0, each_way - compute_seconds * 2 / 3)


def host_holds(offloaded_bytes: float, target: Slice) -> bool:
    """Return whether a device's share of the host's memory has room for its activations."""
    return offloaded_bytes <= HOST_SHARE / target.chip.devices_per_chip * target.chip.host_bytes


def _tokens(experiment: Experiment) -> int:
    """Return the tokens of one device and micro-batch."""
    mesh = experiment.execution.mesh
    rows = experiment.data.batch_size // experiment.execution.micro_batches
    return rows * experiment.data.seq_len // (mesh.replica * mesh.fsdp)


def _device_params(experiment: Experiment) -> int:
    model, mesh = experiment.model, experiment.execution.mesh
    shapes = param_shapes(model).items()
    norms = sum(math.prod(shape) for name, shape in shapes if is_vector(name, shape))
    # Each device has all of these.
    return (num_params(model) - norms) // (mesh.fsdp * mesh.tensor) + norms


def _layer_params(model: ModelConfig) -> int:
    """Return the number of parameters in the matrices of one layer."""
    head = model.vocab_size * model.embed_dim
    return (num_matmul_params(model) - head) // model.num_layers


def _kept_per_token(experiment: Experiment) -> tuple[int, int]:
    """Return the bytes that a layer keeps of a token for the backward pass: (on the device, on the
    host)."""
    model, mesh = experiment.model, experiment.execution.mesh
    compute = BF16 if model.compute_dtype == "bfloat16" else FP32
    tensor, in_time = mesh.tensor, mesh.tensor if mesh.sequence_parallel else 1
    keys = model.kv_heads * model.head_dim // tensor
    softmax = FP32 * model.num_heads // tensor  # the logarithm of its sum, for each head
    size = {
        "residual": compute * model.embed_dim // in_time,
        "query": compute * model.embed_dim // tensor,
        "key": compute * keys,
        "value": compute * keys,
        "context": compute * model.embed_dim // tensor + softmax,
        "out": compute * model.embed_dim // in_time,
        "gate": compute * model.mlp_dim // tensor,
        "up": compute * model.mlp_dim // tensor,
    }
    policy = REMAT_POLICIES[experiment.execution.remat]
    if experiment.execution.remat == "everything":
        norms = 2 * compute * model.embed_dim * (1 / in_time + 1)
        return round(sum(size.values()) + size["gate"] + norms), 0
    offloaded = sum(size[name] for name in policy.offload)
    on_device = sum(size[name] for name in {"residual", *policy.save} - {*policy.offload})
    return on_device, offloaded


def _buffers(experiment: Experiment) -> int:
    """Return the bytes of the step's working memory: weights cast and gathered, one layer's arrays,
    the loss's."""
    model, mesh = experiment.model, experiment.execution.mesh
    D, F, V = model.embed_dim, model.mlp_dim, model.vocab_size
    compute = BF16 if model.compute_dtype == "bfloat16" else FP32
    tokens, tensor = _tokens(experiment), mesh.tensor
    cast = compute * _device_params(experiment)
    gathered = 2 * compute * _layer_params(model) // tensor  # this layer's and the next one's
    # The backward pass of a layer: the MLP's two inputs, their product and three gradients, and
    # the residual, its norm and its gradients.
    layer = compute * tokens * (6 * F // tensor + 6 * D)
    chunk = min(LOSS_CHUNK, tokens)
    loss = V // tensor * (3 * FP32 * chunk + (FP32 + compute) * D) + 2 * compute * tokens * D
    return cast + max(gathered + layer, loss)


def _executed_flops(experiment: Experiment) -> float:
    """Return the model FLOPs and those of what the backward pass computes again, for one device and
    step."""
    model, mesh = experiment.model, experiment.execution.mesh
    T, D = experiment.data.seq_len, model.embed_dim
    tokens = _tokens(experiment) * experiment.execution.micro_batches / mesh.tensor
    again = 0.0
    if experiment.execution.remat != "everything":
        policy = REMAT_POLICIES[experiment.execution.remat]
        saved = {*policy.save, *policy.offload}
        width = model.kv_heads * model.head_dim
        widths = {"query": D, "key": width, "value": width, "gate": model.mlp_dim}
        widths |= {"up": model.mlp_dim, "out": D}
        again += sum(2 * D * w for name, w in widths.items() if name not in saved)
        again += 0 if "context" in saved else 2 * T * D
    # A kernel's backward pass computes the scores again, causal attention's being T * D a product.
    per_token = model_flops_per_token(model, T) + model.num_layers * (again + T * D)
    return tokens * per_token


def _seconds(
    experiment: Experiment, target: Slice, executed: float, offloaded: int
) -> dict[str, float]:
    model, mesh, chip = experiment.model, experiment.execution.mesh, target.chip
    tokens = _tokens(experiment) * experiment.execution.micro_batches
    attention = 7 * model.num_layers * experiment.data.seq_len * model.embed_dim
    attention = min(attention * tokens / mesh.tensor, executed / 2)
    matmul = (executed - attention) / chip.peak_flops / MATMUL_EFFICIENCY
    # The optimizer reads and writes weights, two moments and gradients: seven fp32 numbers.
    update = 7 * FP32 * _device_params(experiment) / chip.hbm_bandwidth
    attention /= chip.peak_flops * chip.attention_efficiency
    return {
        "matmul": matmul,
        "attention": attention,
        "other compute": OTHER_COMPUTE * matmul + update,
        "copies": host_seconds(offloaded, experiment.execution.micro_batches, matmul + attention),
        "exposed communication": _weights_seconds(experiment, target, matmul)
        + _tensor_seconds(experiment, target),
    }


def _bandwidth(target: Slice, ways: int) -> float:
    """Return the bytes/s of one device in a ring of so many: on TPUs along one axis of the torus,
    because sharding.py takes fsdp's two parts one after the other."""
    chip = target.chip
    if chip.dimensions:
        return chip.link_bandwidth * (1 if all(chip.wraparound(target.shape)) else 0.5)
    inside = chip.link_bandwidth / 2  # one way
    # Beyond a node, each of its GPUs brings in a part of what all of them gather.
    outside = min(inside, chip.node_size * chip.network_bandwidth)
    return inside if ways <= chip.node_size else outside


def _weights_seconds(experiment: Experiment, target: Slice, compute: float) -> float:
    """Return the exposed seconds of gathering weights, forward and backward, and of scattering
    their gradients, in each micro-batch."""
    model, execution = experiment.model, experiment.execution
    mesh = execution.mesh
    weights = BF16 * num_matmul_params(model) / mesh.tensor * execution.micro_batches
    gather = scatter = 0.0
    if mesh.fsdp > 1:
        scatter = weights / _bandwidth(target, mesh.fsdp)
        gather = 2 * scatter
    if mesh.replica > 1:  # a ring over the replicas; over DCN if there are slices
        between = target.num_slices > 1
        rate = target.chip.network_bandwidth if between else _bandwidth(target, mesh.replica)
        scatter += 2 * weights / mesh.fsdp / rate
    if mesh.ring > 1:  # hops hide, and add what they bring to what is there
        hops = scatter * (1 - 1 / mesh.ring)
        adds = 3 * weights / target.chip.hbm_bandwidth
        scatter += max(0, 2 * hops - compute / 3) + adds - hops
    return max(gather * (1 - GATHER_OVERLAP), gather - compute) + scatter


def _tensor_seconds(experiment: Experiment, target: Slice) -> float:
    """Return the exposed seconds of gathering and scattering activations around the two parts of
    each layer."""
    model, mesh = experiment.model, experiment.execution.mesh
    if mesh.tensor == 1:
        return 0.0
    tokens = _tokens(experiment) * experiment.execution.micro_batches
    moved = BF16 * tokens * model.embed_dim * (mesh.tensor - 1) / mesh.tensor
    # Two gathers and two scatters forward, twice that backward with what is computed again.
    seconds = 12 * model.num_layers * moved / _bandwidth(target, mesh.tensor)
    return seconds * (1 - GATHER_OVERLAP / 2)
