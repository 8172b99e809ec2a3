"""The four sizes on their slices: the recorded figures, and some of them compiled again."""

import collections
import dataclasses
import importlib.util
import itertools
import json
import math

import pytest

import golden_plans
from llama_jax.config import MeshConfig
from llama_jax.hardware import parse_slice
from llama_jax.plan.compile import devices
from llama_jax.sharding import FSDP, make_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="there is no libtpu for this system"
)
GOLDEN = json.loads(golden_plans.GOLDEN.read_text())


def test_every_size_fits_each_of_its_slices_with_memory_to_spare():
    assert sorted(GOLDEN) == sorted(golden_plans.placements())
    assert "llama_65b@v4:8x16x16" in GOLDEN  # 2048 chips
    for name, figures in GOLDEN.items():
        assert figures["fits"] and figures["spare_share"] >= 0.05, name


@needs_libtpu
@pytest.mark.parametrize(
    "target, mesh, fsdp",
    [
        ("v5e:8x8", MeshConfig(fsdp=64), (1, 8, 8)),
        ("v5p:4x4x4", MeshConfig(fsdp=64), (1, 16, 4)),
        ("2xv5e:8x8", MeshConfig(replica=2, fsdp=64), (1, 8, 8)),
        ("v5p:8x8x16", MeshConfig(replica=8, fsdp=64, tensor=2), (1, 64, 1)),  # not all of it
        ("v5e:8x8", MeshConfig(fsdp=64, ring=8), (8, 8, 1)),
        ("v4:8x16x16", MeshConfig(replica=8, fsdp=64, ring=8, tensor=4), (8, 8, 1)),
    ],
)
def test_fsdp_is_laid_out_along_the_sides_of_the_torus(target, mesh, fsdp):
    made = make_mesh(mesh, devices(parse_slice(target)))
    assert tuple(made.shape[axis] for axis in FSDP) == fsdp
    for along in (made.devices[0, :, 0, 0, 0], made.devices[0, 0, 0, :, 0]):
        coords = [device.coords for device in along]
        assert all(math.dist(a, b) == 1 for a, b in itertools.pairwise(coords))
    # Replicas, and nothing else, lie in different slices.
    assert all(len({getattr(d, "slice_index", 0) for d in one.flat}) == 1 for one in made.devices)


@pytest.fixture(scope="module")
def v5p():
    """7B on 64 v5p, compiled from today's sources."""
    return golden_plans.plan("llama_7b@v5p:4x4x4")


@needs_libtpu
def test_a_change_of_memory_flops_or_communication_shows(v5p):
    """If this fails and the change is meant: `make plan-all`, and commit the diff."""
    found, recorded = golden_plans.figures(v5p), GOLDEN["llama_7b@v5p:4x4x4"]
    assert found["compiled_by"]["libtpu"] == recorded["compiled_by"]["libtpu"]
    for name in ("hbm_peak_gib", "host_gib", "executed_to_model_flops", "step_seconds_estimate"):
        assert found[name] == pytest.approx(recorded[name], rel=0.01), name
    assert found["collectives_gib"] == pytest.approx(recorded["collectives_gib"], rel=0.01)


@needs_libtpu
def test_gradients_of_weights_are_scattered_not_summed_everywhere(v5p):
    """What all-reduces over fsdp are left carry norms' gradients, the second stage of the two
    tables', and scalars: under a hundredth of what is scattered."""
    sent: dict[str, float] = collections.defaultdict(float)
    for collective in map(dataclasses.asdict, v5p.collectives):
        sent[collective["kind"]] += collective["bytes"]
    weights = 2 * 6.7e9 * v5p.micro_batches  # bf16, once a micro-batch
    assert sent["reduce-scatter"] == pytest.approx(weights, rel=0.1)
    assert sent["all-reduce"] < 0.01 * sent["reduce-scatter"]
