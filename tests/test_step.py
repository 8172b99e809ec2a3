"""One optimizer step: every mesh, micro-batches and remat policies against one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.steps import BASE, LOSS, packed_batch, replace
from llama_jax.config import (
    REMAT_POLICIES,
    Experiment,
    MeshConfig,
    ModelConfig,
    UserError,
)
from llama_jax.optimizer import make_optimizer
from llama_jax.sharding import batch_sharding, make_mesh
from llama_jax.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
    next_token_loss,
)

NUM_STEPS = 4


@functools.cache
def initial(model: ModelConfig, mesh_cfg: MeshConfig):
    """The program that makes the initial state, of BASE but for these two."""
    experiment = replace(dataclasses.replace(BASE, model=model), "execution", mesh=mesh_cfg)
    return jax.jit(lambda: init_state(experiment))


def run(experiment: Experiment, num_steps: int = NUM_STEPS):
    """(losses, final state, compiled step) of a few steps on the experiment's mesh, or on one
    device if it has none."""
    mesh_cfg, A = experiment.execution.mesh, experiment.execution.micro_batches
    num_devices = mesh_cfg.replica * mesh_cfg.fsdp * mesh_cfg.tensor or 1
    mesh = make_mesh(mesh_cfg, jax.devices()[:num_devices])
    sharding = batch_sharding(mesh, mesh_cfg, "ABT")
    losses = []
    with jax.set_mesh(mesh):
        state = initial(experiment.model, mesh_cfg)()
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
    compilations = train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    assert compilations == 1
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
    model = initial(BASE.model, BASE.execution.mesh)().params
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
    state = initial(BASE.model, BASE.execution.mesh)()
    batch = {k: jnp.asarray(v)[None] for k, v in packed_batch(0).items()}
    make_train_step(BASE, next_token_loss(BASE.execution))(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_evaluation_is_the_same_loss_without_an_update(one_device):
    state = initial(BASE.model, BASE.execution.mesh)()
    batch = {k: jnp.asarray(v) for k, v in packed_batch(0).items()}
    loss, targets = make_eval_step(LOSS)(state.params, None, batch)
    assert int(targets) == (packed_batch(0)["targets"] >= 0).sum()
    _, metrics = make_train_step(BASE, next_token_loss(BASE.execution))(
        state, {k: v[None] for k, v in batch.items()}
    )
    np.testing.assert_allclose(float(loss) / int(targets), float(metrics["loss"]), rtol=1e-6)


def test_a_mesh_that_is_not_the_machine_is_an_error():
    with pytest.raises(UserError, match="2 \\* 3 \\* 1 = 6, but there are 8 devices"):
        make_mesh(MeshConfig(replica=2, fsdp=3), jax.devices())


def low_rank_loss(execution):
    """A frozen model's loss, with a product of two thin matrices added to each layer's gate."""
    of_model = next_token_loss(execution)

    def loss(params, frozen, batch):
        adapted = jax.tree.map(lambda w: w, frozen)
        gate_LDF = frozen.layers.mlp.w_gate_DF[...]
        spec = jax.typeof(gate_LDF).sharding.spec
        delta_LDF = jnp.einsum("ldr,lrf->ldf", params["a"], params["b"], out_sharding=spec)
        adapted.layers.mlp.w_gate_DF[...] = gate_LDF + delta_LDF
        return of_model(adapted, None, batch)

    return loss


def test_a_step_trains_what_its_loss_takes_first_and_nothing_else():
    mesh_cfg = MeshConfig(fsdp=2, tensor=2)
    experiment = replace(BASE, "execution", mesh=mesh_cfg, micro_batches=2)
    mesh = make_mesh(mesh_cfg, jax.devices()[:4])
    tx = make_optimizer(experiment.optimizer, experiment.run.num_steps)
    sharding = batch_sharding(mesh, mesh_cfg, "ABT")
    rows = {k: v.reshape(2, 4, 24) for k, v in packed_batch(0).items()}
    with jax.set_mesh(mesh):
        frozen = jax.jit(lambda: init_state(experiment))().params
        L, D, F = frozen.layers.mlp.w_gate_DF.shape
        params = {"a": 0.1 * jnp.ones((L, D, 1)), "b": jnp.zeros((L, 1, F))}
        before = jax.device_get(frozen)
        state = TrainState(
            step=jnp.int32(0), params=params, frozen=frozen, opt_state=jax.jit(tx.init)(params)
        )
        train_step = make_train_step(experiment, low_rank_loss(experiment.execution))
        losses = []
        for _ in range(3):
            state, metrics = train_step(state, jax.device_put(rows, sharding))
            losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]  # of one batch; the first update has a learning rate of 0
    assert np.abs(state.params["b"]).max() > 0
    for kept, was in zip(jax.tree.leaves(state.frozen), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(kept, was)
