"""One optimizer step on every mesh, in micro-batches, under every remat policy, against optax and
against plain formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.config import (
    REMAT_POLICIES,
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
    UserError,
)
from llama_jax.loss import cross_entropy
from llama_jax.optimizer import decay_mask, learning_rate_schedule
from llama_jax.sharding import batch_sharding, make_mesh
from llama_jax.step import init_state, make_eval_step, make_train_step, next_token_loss

NUM_STEPS = 4
BASE = Experiment(
    model=ModelConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        mlp_dim_override=48,
        vocab_size=64,
        compute_dtype="float32",
        init_std=0.1,
    ),
    data=DataConfig(store="", seq_len=24, batch_size=8),
    optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1),
    run=RunConfig(num_steps=10),
    upkeep=Upkeep(eval_every=10, eval_rows=8, checkpoint_every=10),
)


LOSS = next_token_loss(BASE.execution)


def replace(experiment: Experiment, section: str, **fields) -> Experiment:
    changed = dataclasses.replace(getattr(experiment, section), **fields)
    return dataclasses.replace(experiment, **{section: changed})


def packed_batch(step: int) -> dict[str, np.ndarray]:
    """Random rows of two documents each, with some targets that do not count; int32 [8, 24]."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (8, 25)).astype(np.int32)
    cut = rng.integers(4, 20, (8, 1))
    place = np.arange(24)[None]
    return {
        "tokens": tokens[:, :-1],
        "targets": np.where(place == cut - 1, -1, tokens[:, 1:]).astype(np.int32),
        "segments": (1 + (place >= cut)).astype(np.int32),
        "positions": np.where(place >= cut, place - cut, place).astype(np.int32),
    }


def run(experiment: Experiment, num_steps: int = NUM_STEPS):
    """(losses, final state, compiled step) of a few steps on the experiment's mesh."""
    mesh_cfg, A = experiment.execution.mesh, experiment.execution.micro_batches
    num_devices = mesh_cfg.replica * mesh_cfg.fsdp * mesh_cfg.tensor
    mesh = make_mesh(mesh_cfg, jax.devices()[:num_devices])
    sharding = batch_sharding(mesh, mesh_cfg, "ABT")
    losses = []
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(experiment))()
        train_step = make_train_step(experiment, next_token_loss(experiment.execution))
        for step in range(num_steps):
            rows = {k: v.reshape(A, 8 // A, 24) for k, v in packed_batch(step).items()}
            state, metrics = train_step(state, jax.device_put(rows, sharding))
            losses.append(float(metrics["loss"]))
    return np.array(losses), state, train_step


@pytest.fixture(scope="module")
def reference():
    return run(BASE)


def test_loss_goes_down(reference):
    losses, state, _ = reference
    assert abs(losses[0] - np.log(64)) < 0.3
    assert int(state.step) == NUM_STEPS


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(replica=8),
        MeshConfig(fsdp=8),
        MeshConfig(replica=2, tensor=4),
        MeshConfig(fsdp=4, tensor=2),
        MeshConfig(replica=2, fsdp=2, tensor=2, sequence_parallel=True),
        MeshConfig(fsdp=2, tensor=4, sequence_parallel=True),
        MeshConfig(fsdp=8, ring=4),
        MeshConfig(fsdp=4, ring=4, tensor=2, sequence_parallel=True),
    ],
    ids=str,
)
def test_every_mesh_agrees_with_one_device(reference, mesh):
    losses, state, train_step = run(replace(BASE, "execution", mesh=mesh))
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    assert train_step._cache_size() == 1  # one compilation
    for param, mu in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(state.opt_state[1][0].mu), strict=True
    ):
        assert mu.sharding.is_equivalent_to(param.sharding, param.ndim)
    # A matrix takes its share of each device's memory, not more.
    gate = state.params.layers.mlp.w_gate_DF[...]
    assert gate.addressable_shards[0].data.size == gate.size // (mesh.fsdp * mesh.tensor)


def test_two_stages_over_fsdp_agree_with_one_device(reference, monkeypatch):
    """As on a torus: gathers and reductions over a line and over the planes it connects."""
    monkeypatch.setattr("llama_jax.sharding.line_length", lambda grid: 2)
    losses = run(replace(BASE, "execution", mesh=MeshConfig(fsdp=8)))[0]
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)


def test_bf16_sums_of_micro_batches_are_close(reference):
    experiment = replace(BASE, "run", gradient_dtype="bfloat16")
    experiment = replace(experiment, "execution", micro_batches=4)
    losses, state, _ = run(experiment)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-2)
    assert (losses != reference[0]).any()
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_sequence_parallel_residuals_are_split_in_time():
    mesh_cfg = MeshConfig(fsdp=2, tensor=4, sequence_parallel=True)
    mesh = make_mesh(mesh_cfg, jax.devices())
    experiment = replace(BASE, "execution", mesh=mesh_cfg)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: init_state(experiment))
        batch = {
            k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(mesh, mesh_cfg, "BT"))
            for k, v in packed_batch(0).items()
        }
        jaxpr = jax.make_jaxpr(LOSS)(state.params, None, batch)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    residual = [v.aval for v in scan.outvars if v.aval.shape == (8, 24, 32)]
    assert [a.sharding.spec for a in residual] == [
        jax.P(("replica", "ring", "plane", "line"), "tensor", None)
    ]


def test_grouped_heads_and_a_tied_head_agree_over_a_mesh():
    experiment = replace(BASE, "model", num_kv_heads=2, tie_embeddings=True)
    meshed = replace(experiment, "execution", mesh=MeshConfig(replica=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(run(meshed)[0], run(experiment)[0], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_are_one_batch(reference, micro_batches):
    losses, state, _ = run(replace(BASE, "execution", micro_batches=micro_batches))
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    # Rows of a micro-batch have different numbers of targets: a mean of means would differ.
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(reference[1].params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("remat", [name for name in REMAT_POLICIES if name != BASE.execution.remat])
def test_rematerialisation_changes_nothing(reference, remat):
    np.testing.assert_allclose(
        run(replace(BASE, "execution", remat=remat))[0], reference[0], rtol=1e-5
    )


def test_bf16_is_close_to_fp32(reference):
    losses, state, _ = run(replace(BASE, "model", compute_dtype="bfloat16"))
    np.testing.assert_allclose(losses, reference[0], rtol=1e-2)
    assert (losses != reference[0]).any()
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_bf16_gradients_are_summed_in_fp32(one_device):
    """Of a token that is everywhere, too: 4,096 times a bf16 sum would stop growing at 256."""
    model = jax.jit(lambda: init_state(BASE))().params
    tokens = np.where(np.random.default_rng(0).random((16, 256)) < 0.9, 7, 9).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segments": np.ones_like(tokens),
        "positions": np.tile(np.arange(256, dtype=np.int32), (16, 1)),
    }
    grads = {}
    for dtype in ("float32", "bfloat16"):
        model.cfg = dataclasses.replace(BASE.model, compute_dtype=dtype)
        grads[dtype] = jax.jit(jax.grad(LOSS, has_aux=True))(model, None, batch)[0]
    exact, rounded = (np.asarray(g.embed_VD[...])[7] for g in grads.values())
    assert np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)


def test_the_old_state_is_donated(one_device):
    state = jax.jit(lambda: init_state(BASE))()
    batch = {k: jnp.asarray(v)[None] for k, v in packed_batch(0).items()}
    make_train_step(BASE, next_token_loss(BASE.execution))(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_evaluation_is_the_same_loss_without_an_update(one_device):
    state = jax.jit(lambda: init_state(BASE))()
    batch = {k: jnp.asarray(v) for k, v in packed_batch(0).items()}
    loss, targets = make_eval_step(LOSS)(state.params, None, batch)
    assert int(targets) == (packed_batch(0)["targets"] >= 0).sum()
    _, metrics = make_train_step(BASE, next_token_loss(BASE.execution))(
        state, {k: v[None] for k, v in batch.items()}
    )
    np.testing.assert_allclose(float(loss) / int(targets), float(metrics["loss"]), rtol=1e-6)


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


def test_one_update_is_adamw_by_its_formula(one_device):
    """The first step: m / sqrt(v) is the sign of the clipped gradient; decay is added, but not to
    norms (Loshchilov and Hutter, arXiv 1711.05101)."""
    experiment = replace(BASE, "optimizer", warmup_steps=0, peak_lr=1e-2, weight_decay=0.5)
    state = jax.jit(lambda: init_state(experiment))()
    batch = {k: jnp.asarray(v) for k, v in packed_batch(0).items()}
    before = jax.device_get(state.params)
    grads, targets = jax.jit(jax.grad(LOSS, has_aux=True))(state.params, None, batch)
    grads = jax.device_get(jax.tree.map(lambda g: g / targets, grads))
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    state, metrics = make_train_step(experiment, next_token_loss(experiment.execution))(
        state, {k: v[None] for k, v in batch.items()}
    )
    assert abs(float(metrics["grad_norm"]) - norm) < 1e-4 * norm
    scale = min(1.0, 1.0 / norm)

    def expected(path, w, g):
        g = g * scale
        decay = 0.0 if "norm" in jax.tree_util.keystr(path) else 0.5
        return w - 1e-2 * (g / (np.abs(g) + 1e-8) + decay * w)

    wanted = jax.tree_util.tree_map_with_path(expected, before, grads)
    for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_norms_are_not_decayed_though_they_are_stacked_matrices(one_device):
    model = jax.eval_shape(lambda: init_state(BASE)).params
    mask = decay_mask(model, BASE.optimizer.no_decay)
    decayed = {
        jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(mask) if m
    }
    assert len(decayed) == 9 and not any("norm" in name for name in decayed)


def test_schedule_is_the_papers():
    rate = learning_rate_schedule(OptimizerConfig(peak_lr=3e-4, warmup_steps=2000), 238_418)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(1000)), 1.5e-4, rtol=1e-6)
    np.testing.assert_allclose(float(rate(2000)), 3e-4, rtol=1e-6)
    middle = 2000 + (238_418 - 2000) // 2
    np.testing.assert_allclose(float(rate(middle)), (3e-4 + 3e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(float(rate(238_418)), 3e-5, rtol=1e-5)


def test_a_mesh_that_is_not_the_machine_is_an_error():
    with pytest.raises(UserError, match="2 \\* 3 \\* 1 = 6, but there are 8 devices"):
        make_mesh(MeshConfig(replica=2, fsdp=3), jax.devices())
