"""What gpu.py measures: each part at any size, so that a CPU can test it at a small one.

jax is imported by what uses it: gpu.py runs each part in a process of its own.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

TOLERANCE = 0.02  # of the largest value: bf16 holds a value to 0.004 of it, and several round
MATMUL_SIZE = 8192
READ_BYTES = 4 * 2**30
PROMPT, NEW = 128, 128  # tokens
ROUNDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure and what it is held against, in SI units, bytes or shares of one."""

    part: str
    quantity: str
    unit: str  # that the table shows it in: one of UNITS
    measured: float | None  # None: the device does not tell
    beside: float | None  # None: no figure is known
    beside_what: str

    @property
    def ratio(self) -> float | None:
        if self.measured is None or self.beside is None:
            return None
        return self.measured / self.beside


def limits(size: int = MATMUL_SIZE, num_bytes: int = READ_BYTES) -> list[Row]:
    """Measure what the card reaches, beside its data sheet."""
    chip = chip_here()
    return [
        Row(
            part="limits",
            quantity=f"bf16 matrix product of {size:,}",
            unit="TFLOP/s",
            measured=matmul_flops(size),
            beside=chip and chip.peak_flops,
            beside_what="data sheet",
        ),
        Row(
            part="limits",
            quantity="memory bandwidth",
            unit="GB/s",
            measured=bandwidth(num_bytes),
            beside=chip and chip.hbm_bandwidth,
            beside_what="data sheet",
        ),
    ]


def attention(
    kernel: Callable | None = None,
    shapes: tuple[tuple[int, int, int], ...] = ((4, 1, 64), (2, 2, 128)),
) -> list[Row]:
    """Compare cuDNN's attention in bf16 with the reference in fp32, of the same bf16 operands.

    kernel: (q, k, v, segments) -> out, in place of cuDNN's.
    shapes: key/value heads, query heads for each of them, head dim.
    """
    import jax
    import jax.numpy as jnp

    from llama_jax.attention import cudnn, reference
    from llama_jax.config import MeshConfig
    from llama_jax.sharding import activation_spec, make_mesh

    def outputs_and_gradients(attend: Callable, dtype: str, *qkv_and_segments: jax.Array):
        *qkv, segments_BT, weights_BTGRK = qkv_and_segments

        def loss(q_BTGRK, k_BTGK, v_BTGK):
            out_BTGRK = attend(*(x.astype(dtype) for x in (q_BTGRK, k_BTGK, v_BTGK)), segments_BT)
            return jnp.sum(out_BTGRK.astype(jnp.float32) * weights_BTGRK), out_BTGRK

        with jax.default_matmul_precision("highest"):  # fp32 would otherwise be TF32 on a GPU
            grads, out_BTGRK = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
        return out_BTGRK, *grads

    run = jax.jit(outputs_and_gradients, static_argnums=(0, 1))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rows = []
    with jax.set_mesh(mesh):
        for G, R, K in shapes:
            operands = [
                jax.device_put(x, jax.NamedSharding(mesh, activation_spec(dims)))
                for dims, x in _attention_operands(G, R, K)
            ]
            expected = run(reference, "float32", *operands)
            got = run(kernel or cudnn, "bfloat16", *operands)
            errors = [_error(a, b) for a, b in zip(got, expected, strict=True)]
            for what, error in (("outputs", errors[0]), ("gradients", max(errors[1:]))):
                quantity = f"{what}, {G * R} heads of {K}, {G} of keys: largest difference"
                rows.append(
                    Row(
                        part="attention",
                        quantity=quantity,
                        unit="%",
                        measured=error,
                        beside=TOLERANCE,
                        beside_what="tolerance",
                    )
                )
    return rows


def training(
    part: str,
    model: Any,
    execution: Any,
    rows: int,
    steps: int,
    *,
    seq_len: int = 2048,
    chip: Any = None,
    matmul_size: int = MATMUL_SIZE,
) -> list[Row]:
    """Measure train steps of `rows` rows on one device, and plan them for `chip`, by default the
    card that is here."""
    import jax
    import numpy as np

    from llama_jax.attention import check_platform
    from llama_jax.flops import model_flops_per_token
    from llama_jax.sharding import batch_sharding, make_mesh
    from llama_jax.step import init_state, make_train_step, next_token_loss

    experiment = experiment_of(model, execution, rows, seq_len)
    check_platform(execution)
    mesh = make_mesh(execution.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        batch = random_batch(model.vocab_size, rows, seq_len)
        batch = jax.device_put(batch, batch_sharding(mesh, execution.mesh, "ABT"))
        state = jax.jit(lambda: init_state(experiment))()
        train_step = make_train_step(experiment, next_token_loss(execution))
        state, _ = train_step(state, batch)  # compiles
        state, metrics = train_step(state, batch)  # warms up
        if not np.isfinite(float(metrics["loss"])):
            raise ValueError(f"the loss is {float(metrics['loss'])}")
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(steps):
                state, _ = train_step(state, batch)
            jax.block_until_ready(state)
            seconds.append((time.perf_counter() - start) / steps)
    # Before the matrix product, whose operands would count.
    peak_bytes = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    del state
    step_seconds = statistics.median(seconds)
    rate = rows * seq_len / step_seconds
    flops = model_flops_per_token(model, seq_len)
    chip = chip or chip_here()
    plan = plan_for(experiment, chip)

    def row(quantity: str, unit: str, measured: float | None, beside: float | None, what: str):
        return Row(
            part=part,
            quantity=quantity,
            unit=unit,
            measured=measured,
            beside=beside,
            beside_what=what,
        )

    mfu = rate * flops / chip.peak_flops if chip else None
    return [
        row("training", "tokens/s", rate, matmul_flops(matmul_size) / flops, "matrix product"),
        row("MFU of the data sheet", "%", mfu, plan and plan.mfu and plan.mfu[0], "plan"),
        row("step time", "ms", step_seconds, plan and plan.step_seconds, "plan"),
        row("peak memory", "GiB", peak_bytes, plan and plan.hbm_peak_bytes, "plan"),
    ]


def decoding(
    part: str,
    model: Any,
    int8: bool,
    *,
    batches: tuple[int, ...] = (1, 8),
    new: int = NEW,
    read_bytes: int = READ_BYTES,
) -> list[Row]:
    """Measure greedy decoding of random weights, by batch: `new` tokens a row, from the end of the
    first chunk on, so that the prompts' time does not count."""
    import jax
    from flax import nnx

    from llama_jax.config import MeshConfig
    from llama_jax.generation.decoder import to_decode_layout
    from llama_jax.generation.sampling import CHUNK, Sampling, generate
    from llama_jax.model import Llama
    from llama_jax.sharding import make_mesh

    greedy = Sampling(temperature=0.0)
    rows = []
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        decoder = to_decode_layout(jax.jit(lambda: Llama(model, nnx.Rngs(0)))(), int8=int8)
        read = bandwidth(read_bytes)
        for batch in batches:
            prompts = [
                [1 + (7919 * (row + 1) * i) % (model.vocab_size - 1) for i in range(PROMPT)]
                for row in range(batch)
            ]

            spent = []
            for _ in range(1 + ROUNDS):  # the first compiles
                chunks = generate(decoder, prompts, CHUNK + new, greedy)
                ends = [time.perf_counter() for _ in chunks]
                spent.append(ends[-1] - ends[0])
            rows.append(
                Row(
                    part=part,
                    quantity=f"decoding, batch {batch}",
                    unit="tokens/s",
                    measured=batch * new / statistics.median(spent[1:]),
                    beside=batch * read / step_bytes(model, int8, batch, new),
                    beside_what="memory bandwidth",
                )
            )
    return rows


def train_part(size: str, remat: str, rows: int, steps: int) -> Callable[[str], list[Row]]:
    return lambda part: training(part, gpu_model(size), gpu_execution(remat), rows, steps)


def decode_part(size: str, int8: bool) -> Callable[[str], list[Row]]:
    return lambda part: decoding(part, gpu_model(size), int8)


# The most wanted first, should time run out.
PARTS: dict[str, Callable[[str], list[Row]]] = {
    "limits": lambda _: limits(),
    "attention": lambda _: attention(),
    "train-1B-linear": train_part("1B", "linear", rows=8, steps=5),
    "decode-1B-bf16": decode_part("1B", int8=False),
    "train-110M-linear": train_part("110M", "linear", rows=16, steps=10),
    "decode-1B-int8": decode_part("1B", int8=True),
    "train-1B-nothing": train_part("1B", "nothing", rows=8, steps=5),
    "train-110M-nothing": train_part("110M", "nothing", rows=16, steps=10),
}


# What they are made of


def gpu_model(size: str):
    """Return the ModelConfig of a size, in bf16."""
    from llama_jax import config

    sizes = {"110M": config.LLAMA_110M, "1B": config.LLAMA_1B}
    return dataclasses.replace(sizes[size], compute_dtype="bfloat16")


def gpu_execution(remat: str):
    """Return an Execution on one device by cuDNN's kernel."""
    from llama_jax.config import Execution

    return Execution(attention="cudnn", remat=remat)


def experiment_of(model: Any, execution: Any, rows: int, seq_len: int):
    """Return a validated experiment on one device; only the step of it is ever run."""
    from llama_jax import config
    from llama_jax.experiment import validate

    experiment = config.Experiment(
        model=model,
        data=config.DataConfig(store="", seq_len=seq_len, batch_size=rows),
        optimizer=config.OptimizerConfig(peak_lr=3e-4),
        run=config.RunConfig(num_steps=10_000),
        execution=execution,
        upkeep=config.Upkeep(eval_every=1, eval_rows=1, checkpoint_every=1),
    )
    validate(experiment)
    return experiment


def random_batch(vocab_size: int, rows: int, seq_len: int) -> dict[str, Any]:
    """Return int32 [1, rows, seq_len] arrays of random tokens, a row being one document."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, vocab_size, (1, rows, seq_len + 1), np.int32)
    ones = np.ones((1, rows, seq_len), np.int32)
    return {
        "tokens": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "segments": ones,
        "positions": ones * np.arange(seq_len, dtype=np.int32),
    }


def chip_here():
    """Return the Chip of `plan` that the first device is, or None if it has no such chip."""
    import jax

    from llama_jax.hardware import CHIPS

    kind = jax.devices()[0].device_kind
    return next((chip for chip in CHIPS.values() if chip.device_kind == kind), None)


def plan_for(experiment: Any, chip: Any):
    """Return the Plan of the experiment on one such chip, by arithmetic; None without a chip."""
    from llama_jax.hardware import parse_slice
    from llama_jax.layout import on_devices
    from llama_jax.plan.plan import make_plan

    laid_out = on_devices(experiment, 1, "there is one card")
    return chip and make_plan("gpu", laid_out, parse_slice(f"{chip.name}:1"), None, None)


def matmul_flops(size: int, products: int = 20) -> float:
    """Measure the FLOP/s of size x size products in bf16, the median over rounds.

    Of random numbers: of ones a GPU is faster, because few bits flip.
    """
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    c = product(a, b)
    c.block_until_ready()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(products):
            c = product(a, b)
        c.block_until_ready()
        seconds.append((time.perf_counter() - start) / products)
    return 2 * size**3 / statistics.median(seconds)


def bandwidth(num_bytes: int, passes: int = 10) -> float:
    """Measure the bytes/s of the device's memory: the faster of summing an array and copying it."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(num_bytes // 4, jnp.float32)
    rates = []
    for compute, moved in ((jnp.sum, x.nbytes), (lambda x: x + 1, 2 * x.nbytes)):
        compiled = jax.jit(compute)
        y = compiled(x)
        y.block_until_ready()
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(passes):
                y = compiled(x)
            y.block_until_ready()
            seconds.append((time.perf_counter() - start) / passes)
        rates.append(moved / statistics.median(seconds))
    return max(rates)


def step_bytes(model: Any, int8: bool, batch: int, new: int) -> float:
    """Compute the bytes that one decoding step must read: each matrix once, and each row's keys and
    values, in bf16, of a continuation that is half done."""
    from llama_jax.flops import num_matmul_params

    cache = 2 * 2 * model.num_layers * model.kv_heads * model.head_dim
    return num_matmul_params(model) * (1 if int8 else 2) + batch * cache * (PROMPT + new / 2)


def _attention_operands(G: int, R: int, K: int) -> list[tuple[str, Any]]:
    """Return the letters and the arrays of q, k and v, whose values bf16 can hold, segments of two
    and of three documents, and the weights of a sum over the outputs."""
    import jax.numpy as jnp
    import numpy as np

    B, T = 2, 256
    rng = np.random.default_rng(0)
    q_BTGRK = rng.normal(size=(B, T, G, R, K)) / np.sqrt(K)
    k_BTGK, v_BTGK = rng.normal(size=(2, B, T, G, K))
    place_T = np.arange(T)
    segments_BT = np.stack([1 + (place_T >= 100), 1 + (place_T >= 65) + (place_T >= 150)])
    weights_BTGRK = rng.normal(size=q_BTGRK.shape)

    def rounded(x: np.ndarray):
        return jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)

    return [
        ("BTGRK", rounded(q_BTGRK)),
        ("BTGK", rounded(k_BTGK)),
        ("BTGK", rounded(v_BTGK)),
        ("BT", jnp.asarray(segments_BT, jnp.int32)),
        ("BTGRK", jnp.asarray(weights_BTGRK, jnp.float32)),
    ]


def _error(got: Any, expected: Any) -> float:
    """Return the largest difference, as a share of the largest expected value."""
    import numpy as np

    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    return float(np.abs(got - expected).max() / np.abs(expected).max())
