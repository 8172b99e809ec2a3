"""Slices by name, and the time of a program: hand-worked, against XLA's counts, and of libtpu."""

import importlib.util
import json
import lzma
import math
import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import UserError
from llama_jax.hardware import CHIPS, GIB, Slice, parse_slice
from llama_jax.plan.compile import devices
from llama_jax.plan.estimate import (
    A_SCALE,
    A_SPREAD,
    B_SCALE,
    B_SPREAD,
    KINDS,
    Estimate,
    estimate,
    expected_mfu,
)
from llama_jax.plan.hlo import CAUSAL, DIAGONAL_WASTE

V5E = CHIPS["v5e"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; requirements-tpu.txt has it and needs no TPU",
)

# Slices


def test_slices_are_read_and_written():
    pod = parse_slice("2xv5e:16x16")
    assert pod == Slice(V5E, (16, 16), 2)
    assert (pod.name, pod.num_chips, pod.num_devices) == ("2xv5e:16x16", 512, 512)
    assert parse_slice("tpu7x:4x4x8").num_devices == 2 * 128
    assert parse_slice("h100:64").num_chips == 64
    assert parse_slice("v4:8x16x16").name == "v4:8x16x16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8x8", r"got '8x8', expected \[SLICESx\]CHIP:SHAPE"),
        ("0xv5e:8x8", "no chip '0xv5e'"),
        ("v5e:", "expected"),
        ("trillium:8x8", "no chip 'trillium'; there are v4, v5e, .* trillium is v6e"),
        ("v5litepod:8x8", "v5litepod is v5e"),
        ("v5e:4x4x4", "v5e has no shape 4x4x4; it has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e:16x32", "v6e has no shape 16x32; it has"),
        ("v5p:8x8", "v5p has no shape 8x8; it has 2x2x1, 2x2x2, 2x2x4, 2x4x4 and multiples of 4"),
        ("v5p:4x4x6", "v5p has no shape 4x4x6"),
        ("v4:8x4x4", "ascending order, such as 4x4x4 or 4x8x8"),
        ("h100:8x8", "h100 has no shape 8x8; it has a number of GPUs only, such as h100:64"),
        ("2xh100:8", "GPUs come in no slices"),
    ],
)
def test_what_is_no_slice_is_refused_in_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_slice(text)
    assert "\n" not in str(error.value)


def test_the_clock_of_chips_agrees_with_their_peak():
    per_cycle = {name: chip.peak_flops / chip.clock for name, chip in CHIPS.items() if chip.clock}
    expected = {"v4": 2**18, "v5e": 2**17, "v5p": 2**18, "v6e": 2**19, "tpu7x": 2**19}
    assert per_cycle == pytest.approx(expected, rel=3e-3)


def test_wraparound_of_pods_and_cubes():
    assert V5E.wraparound((8, 16)) == (False, True)
    assert CHIPS["v5p"].wraparound((2, 4, 4)) == (False, False, False)
    assert CHIPS["v5p"].wraparound((4, 4, 8)) == (True, True, True)


def test_devices_without_libtpu_name_the_remedy(monkeypatch):
    from jax.experimental import topologies

    def get_topology_desc(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    with pytest.raises(UserError, match="pip install -r requirements-tpu.txt"):
        devices(parse_slice("v5e:8x8"))
    with pytest.raises(UserError, match="h100:8: programs are compiled for TPUs only"):
        devices(parse_slice("h100:8"))


# Programs by hand

COMPUTE = 50e-6  # seconds of the operations that have a cost
COST = f'backend_config={{"window_config":{{"estimated_cycles":"{COMPUTE * V5E.clock:.0f}"}}}}'
HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"
MESH = {"replica": 1, "fsdp": 4, "tensor": 4}
# All-gather of 512 KiB from each of 4 devices along one axis of v5e:4x4, which is not closed.
SENT = 3 * 2**19
GATHER = SENT / (V5E.link_bandwidth / 2)
assert GATHER < COMPUTE < 2 * GATHER  # the tests below count on it


def entry(*lines: str, result: str = "f32[]") -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"ENTRY %main (a: bf16[512,512]) -> {result} {{\n{body}}}\n"


def of_v5e(hlo: str, mesh: dict[str, int] = MESH) -> Estimate:
    return estimate(HEADER + hlo, V5E, mesh, (4, 4))


LOOP = """%body (p: (s32[], bf16[512,512])) -> (s32[], bf16[512,512]) {
  %p = (s32[], bf16[512,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = bf16[512,512]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %next.copy = s32[] copy(%next)
  ROOT %t = (s32[], bf16[512,512]{1,0}) tuple(%next.copy, %dot)
  %dot = bf16[512,512]{1,0:T(8,128)(2,1)} dot(%w, %w), lhs_contracting_dims={1}, COST
}

%less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%b, %a), direction=LT
}

%cond (q: (s32[], bf16[512,512])) -> pred[] {
  %q = (s32[], bf16[512,512]{1,0}) parameter(0)
  %limit = s32[] constant(9)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %fused = pred[] fusion(%limit, %j), kind=kLoop, calls=%less
}

""".replace("COST", COST)


def test_a_loop_runs_from_its_start_to_its_limit_in_its_steps():
    """From 1 below 9 by 2: four times. Neither is a root the last line, nor a comparison bare."""
    program = LOOP + entry(
        "%a = bf16[512,512]{1,0} parameter(0)",
        "%one = s32[] constant(1)",
        "%init = (s32[], bf16[512,512]{1,0}) tuple(%one, %a)",
        "%while = (s32[], /*index=1*/bf16[512,512]{1,0}) while(%init), condition=%cond, body=%body",
        "%out = bf16[512,512]{1,0} get-tuple-element(%while), index=1",
        f"ROOT %copy = bf16[512,512]{{0,1}} copy(%out), {COST}",
    )
    result = of_v5e(program)
    assert result.matmul_flops == 4 * 2 * 512**3
    assert result.step_seconds == pytest.approx(5 * COMPUTE)
    assert result.breakdown == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"matmul": 4 * COMPUTE, "copies": COMPUTE}
    )
    collective = "%r = bf16[512,512]{1,0} all-reduce(%w), replica_groups=[4,4]<=[16]\n  %next ="
    (reduction,) = of_v5e(program.replace("%next =", collective)).collectives
    assert (reduction.count, reduction.bytes) == (4, 4 * 3 / 2 * 2**19)
    unbounded = of_v5e(program.replace("%limit = s32[] constant(9)", "%limit = s32[] negate(%j)"))
    assert (unbounded.unknown, unbounded.step_seconds) == (("while",), pytest.approx(2 * COMPUTE))


def test_of_branches_the_slowest_counts():
    branch = """%{0} (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} negate(%p), {1}
}}

"""
    program = branch.format("cheap", "") + branch.format("dear", COST)
    program += entry(
        "%a = f32[8]{0} parameter(0)",
        "%i = s32[] parameter(1)",
        "ROOT %c = f32[8]{0} conditional(%i, %a, %a), branch_computations={%dear, %cheap}",
    )
    result = of_v5e(program)
    assert result.breakdown["other compute"] == result.step_seconds == pytest.approx(COMPUTE)


@pytest.mark.parametrize(
    "groups",
    [
        "mesh['axis_0'=4,'axis_1'=4] {'axis_1'}",
        "mesh['axis_0'=16] {'axis_0':(4)4}",
        "mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_1'}",
        "[4,4]<=[16]",
        "{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}",
    ],
)
def test_groups_in_all_spellings(groups):
    result = of_v5e(
        entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            f"ROOT %g = bf16[2048,512]{{1,0}} all-gather(%a), replica_groups={groups}, op=1",
        )
    )
    (gather,) = result.collectives
    assert (gather.kind, gather.axis, gather.count) == ("all-gather", "tensor", 1)
    assert (gather.bytes, gather.seconds) == (SENT, GATHER)
    assert gather.exposed_seconds == result.step_seconds == GATHER


@pytest.mark.parametrize(
    ("operation", "axis", "sent", "axes"),
    [
        ("all-reduce(%a), replica_groups=[4,4]<=[4,4]T(1,0), to_apply=%add", "fsdp", 3 / 2, 0.5),
        ("all-reduce(%a), replica_groups=mesh['x'=16] {'x':(1)4}, op=1", "fsdp", 3 / 2, 0.5),
        ("all-reduce(%a), replica_groups={}, to_apply=%add", "fsdp+tensor", 15 / 8, 1),
        ("reduce-scatter(%a), replica_groups=[4,4]<=[16], to_apply=%add", "tensor", 3 / 4, 0.5),
        ("all-to-all(%a), replica_groups=[4,4]<=[16]", "tensor", 3 / 4, 0.5 * 4),
        ("collective-permute(%a), source_target_pairs={{0,4},{4,8},{8,0}}", "fsdp", 1, 0.5),
    ],
)
def test_bytes_and_bandwidth_of_collectives(operation, axis, sent, axes):
    result = of_v5e(
        entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            f"ROOT %r = bf16[512,512]{{1,0}} {operation}",
        )
    )
    (collective,) = result.collectives
    assert collective.kind == operation.split("(")[0]
    assert (collective.axis, collective.bytes) == (axis, sent * 2**19)
    assert collective.seconds == pytest.approx(sent * 2**19 / (V5E.link_bandwidth * axes))


def test_an_all_reduce_may_send_fewer_bits_than_its_operands_have():
    result = of_v5e(
        entry(
            "%a = f32[512,512]{1,0} parameter(0)",
            "ROOT %r = bf16[512,512]{1,0} all-reduce(%a), replica_groups=[4,4]<=[16]",
        )
    )
    assert result.collectives[0].bytes == 3 / 2 * 2**19


START = "(bf16[512,512]{1,0}, bf16[2048,512]{1,0}) all-gather-start(%a), replica_groups="
PERMUTE = 2**19 / (V5E.link_bandwidth / 2)  # one way
TENSOR, FSDP = "[4,4]<=[16]", "[4,4]<=[4,4]T(1,0)"


def test_an_asynchronous_collective_hides_behind_what_runs_before_its_done():
    """Two gathers queue for the same links; a third, along the other axis, has its own."""
    result = of_v5e(
        entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            f"%s1 = {START}{TENSOR}",
            f"%s2 = {START}{TENSOR}",
            f"%s3 = {START}{FSDP}",
            f"%n = bf16[512,512]{{1,0}} negate(%a), {COST}",
            "%d1 = bf16[2048,512]{1,0} all-gather-done(%s1)",
            "%d3 = bf16[2048,512]{1,0} all-gather-done(%s3)",
            "ROOT %d2 = bf16[2048,512]{1,0} all-gather-done(%s2)",
        )
    )
    assert result.step_seconds == pytest.approx(2 * GATHER)
    assert result.exposed_share == pytest.approx(1 - COMPUTE / (2 * GATHER))
    tensor, fsdp = result.collectives
    assert (tensor.axis, tensor.count, tensor.bytes) == ("tensor", 2, 2 * SENT)
    assert tensor.exposed_seconds == pytest.approx(2 * GATHER - COMPUTE)
    assert (fsdp.axis, fsdp.seconds, fsdp.exposed_seconds) == ("fsdp", GATHER, 0)


@pytest.mark.parametrize(
    "second, seconds",
    [("{0,12},{4,0},{8,4},{12,8}", PERMUTE), ("{0,4},{4,8},{8,12},{12,0}", 2 * PERMUTE)],
)
def test_permutes_share_links_unless_they_go_opposite_ways(second, seconds):
    permute = "(bf16[512,512]{1,0}, bf16[512,512]{1,0}) collective-permute-start(%a)"
    result = of_v5e(
        entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            f"%s1 = {permute}, source_target_pairs={{{{0,4}},{{4,8}},{{8,12}},{{12,0}}}}",
            f"%s2 = {permute}, source_target_pairs={{{second}}}",
            "%d1 = bf16[512,512]{1,0} collective-permute-done(%s1)",
            "ROOT %d2 = bf16[512,512]{1,0} collective-permute-done(%s2)",
        )
    )
    assert result.step_seconds == pytest.approx(seconds)


def test_a_synchronous_collective_goes_first():
    """The gather under way pauses for it, and is over at 2 * GATHER."""
    result = of_v5e(
        entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            f"%s = {START}{TENSOR}",
            "%r = bf16[2048,512]{1,0} all-gather(%a), replica_groups=[4,4]<=[16]",
            "ROOT %d = bf16[2048,512]{1,0} all-gather-done(%s)",
        )
    )
    assert result.step_seconds == pytest.approx(2 * GATHER)


def test_what_is_begun_for_the_next_pass_delays_it():
    result = of_v5e(entry("ROOT %a = bf16[512,512]{1,0} parameter(0)", f"%s = {START}{TENSOR}"))
    assert result.step_seconds == pytest.approx(GATHER)


def fusion(name: str, *lines: str) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"%{name} (p: bf16[512,512]) -> bf16[2048,512] {{\n{body}}}\n\n"


DOT = "bf16[512,512]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}"


def test_continuation_fusions_carry_on_one_collective():
    """One gather, in a start, in a matmul and in a done, not three: hidden but for the rest."""
    gather = "bf16[2048,512]{1,0} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16]"
    p = "%p = bf16[512,512]{1,0} parameter(0)"
    call = 'custom-call(%g), custom_call_target="AsyncCollective'
    program = (
        fusion("f1", p, f"%g = {gather}", f'ROOT %c = bf16[2048,512]{{1,0}} {call}Start"')
        + fusion("async_collective_fusion", p, f"%g = {gather}", "ROOT %m = " + DOT)
        + fusion("f3", p, f"%g = {gather}", f'ROOT %c = bf16[2048,512]{{1,0}} {call}Done"')
        + entry(
            "%a = bf16[512,512]{1,0} parameter(0)",
            "%start = bf16[2048,512]{1,0} fusion(%a), kind=kCustom, calls=%f1",
            f"%run = bf16[512,512]{{1,0}} fusion(%a), calls=%async_collective_fusion, {COST}",
            "%done = bf16[2048,512]{1,0} fusion(%a), kind=kCustom, calls=%f3",
            f"ROOT %n = bf16[2048,512]{{1,0}} negate(%done), {COST}",
        )
    )
    result = of_v5e(program)
    (collective,) = result.collectives
    assert (collective.count, collective.bytes, collective.exposed_seconds) == (1, SENT, 0)
    assert result.step_seconds == pytest.approx(2 * COMPUTE)
    assert result.breakdown["matmul"] == pytest.approx(COMPUTE)
    assert result.matmul_flops == 2 * 512**3
    cheap = of_v5e(program.replace(COST, "", 1))  # the matmul, so that the gather is waited for
    assert cheap.step_seconds == pytest.approx(GATHER + COMPUTE)
    assert cheap.collectives[0].exposed_seconds == pytest.approx(GATHER)


def test_a_collective_of_the_sparse_cores():
    program = fusion(
        "gather",
        "%p = bf16[512,512]{1,0} parameter(0)",
        "ROOT %g = bf16[2048,512]{1,0} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16]",
    ) + entry(
        "%a = bf16[512,512]{1,0} parameter(0)",
        "%s = ((bf16[512,512]{1,0}), bf16[2048,512]{1,0}) call-start(%a), to_apply=%gather",
        f"%n = bf16[512,512]{{1,0}} negate(%a), {COST}",
        "ROOT %d = bf16[2048,512]{1,0} call-done(%s)",
    )
    result = of_v5e(program)
    assert result.step_seconds == pytest.approx(COMPUTE)
    assert [(c.seconds, c.exposed_seconds) for c in result.collectives] == [(GATHER, 0)]


def test_an_all_reduce_that_is_scattered_costs_a_reduce_scatter():
    program = fusion(
        "all-reduce-scatter",
        "%p = bf16[512,512]{1,0} parameter(0)",
        "%r = bf16[512,512]{1,0} all-reduce(%p), replica_groups=[4,4]<=[16], to_apply=%add",
        "%i = s32[] constant(0)",
        "ROOT %s = bf16[128,512]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={128,512}",
    ) + entry(
        "%a = bf16[512,512]{1,0} parameter(0)",
        "ROOT %f = bf16[128,512]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter",
    )
    (collective,) = of_v5e(program).collectives
    assert (collective.kind, collective.bytes) == ("reduce-scatter", 3 / 4 * 2**19)


def test_transfers_between_slices():
    """A program of 16 devices for a mesh of 32: two slices, along the first axis."""
    megascale = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r_0",'
    megascale += '_xla_megascale_transfer_type="ALL_REDUCE"}'
    token = "(bf16[512,512]{1,0}, u32[], token[])"
    program = entry(
        "%a = bf16[512,512]{1,0} parameter(0)",
        "%t = token[] after-all()",
        f"%s = {token} send(%a, %t), {megascale}",
        f"%r = {token} recv(%t), {megascale}",
        "%sd = token[] send-done(%s), is_host_transfer=true",
        f"%n = bf16[512,512]{{1,0}} negate(%a), {COST}",
        "ROOT %rd = (bf16[512,512]{1,0}, token[]) recv-done(%r), is_host_transfer=true",
        "%w = bf16[512,512]{1,0} all-reduce(%a), replica_groups={}",
    )
    result = of_v5e(program, MESH | {"replica": 2})
    collective, within = result.collectives
    assert (within.axis, within.bytes) == ("fsdp+tensor", 15 / 8 * 2**19)
    assert (collective.kind, collective.axis) == ("all-reduce over DCN", "replica")
    assert collective.bytes == 2**19  # a ring of two sends everything once
    seconds = 2**19 / V5E.network_bandwidth
    assert collective.exposed_seconds == pytest.approx(seconds - COMPUTE)
    assert result.step_seconds == pytest.approx(seconds + within.seconds)


# A kernel's metadata has line breaks.
KERNEL = """%{name} = bf16[2,4,512,128]{{3,2,1,0}} custom-call(%q, %k, %k), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{s8[1,1,1]{{2,1,0}}, \
bf16[2,4,512,128]{{3,2,1,0}}, bf16[2,4,512,128]{{3,2,1,0}}}}, frontend_attributes={{metadata={{
"block_q": 512
}}}}"""


@pytest.mark.parametrize(
    ("names", "matmuls"),
    [
        (["splash_mha_fwd_residuals.1"], 2),
        (["splash_mha_fwd.1", "splash_mha_dkv_no_residuals.1"], 2 + 5),
        (["splash_mha_fwd.1", "splash_mha_dq.1", "splash_mha_dkv.1"], 2 + 3 + 4),
    ],
)
def test_attention_kernels_by_their_name(names, matmuls):
    kernels = [KERNEL.format(name=name) for name in names]
    matmul = "%m = bf16[512,512]{1,0} fusion(%q), calls=%f1"
    result = of_v5e(
        fusion("f1", "%p = bf16[512,512]{1,0} parameter(0)", f"ROOT %d = {DOT}")
        + entry("ROOT %q = bf16[2,4,512,128]{3,2,1,0} parameter(0)", *kernels, matmul)
    )
    assert result.matmul_flops == 2 * 512**3
    flops = matmuls * 2 * 2 * 4 * 512 * 512 * 128 * CAUSAL * DIAGONAL_WASTE
    assert result.attention_flops == pytest.approx(flops)
    assert result.step_seconds == result.breakdown["attention"]
    assert result.step_seconds == pytest.approx(flops / (0.5 * V5E.peak_flops))
    assert result.unknown == ()


def test_kernels_whose_time_is_unknown_are_named():
    call = 'f32[] custom-call(), custom_call_target="SomethingNew"'
    free = 'f32[] custom-call(), custom_call_target="AllocateBuffer"'
    result = of_v5e(entry(KERNEL.format(name="topk.1"), f"%b = {free}", f"ROOT %c = {call}"))
    assert result.unknown == ("topk.1", "SomethingNew")


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 9, 7, 8), (1, 1, 8, 16), {"padding": "VALID"}),
        ((2, 9, 7, 8), (3, 2, 8, 16), {"padding": ((1, 2), (0, 1)), "window_strides": (2, 1)}),
        ((2, 9, 7, 8), (3, 2, 4, 16), {"padding": "SAME", "feature_group_count": 2}),
        ((4, 9, 7, 8), (3, 2, 8, 16), {"padding": "VALID", "batch_group_count": 2}),
        ((2, 5, 4, 8), (3, 2, 8, 16), {"padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 3)}),
        (
            (2, 9, 9, 8),
            (3, 3, 8, 16),
            {"padding": ((2, 2), (4, 0)), "rhs_dilation": (2, 3), "window_strides": (1, 3)},
        ),
    ],
)
def test_flops_of_convolutions_are_xlas(x, w, options):
    options = {"window_strides": (1, 1)} | options
    convolve = partial(
        lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    shapes = (jax.ShapeDtypeStruct(x, jnp.float32), jax.ShapeDtypeStruct(w, jnp.float32))
    compiled = jax.jit(convolve).lower(*shapes).compile()
    result = estimate(compiled.as_text(), V5E, {"fsdp": 1}, (1, 1))
    assert result.matmul_flops == compiled.cost_analysis()["flops"]


def test_a_batched_dot_as_libtpu_writes_it():
    """bqhd,bkhd->bhqk with B and H as dilated spatial dimensions: 2 and 8 of them, not squared."""
    result = of_v5e(
        entry(
            "%q = bf16[2,512,8,128]{3,2,1,0} parameter(0)",
            "ROOT %c = f32[2,8,512,512]{3,2,1,0} convolution(%q, %q), "
            "window={size=2x8 stride=1x7 lhs_dilate=2x8}, dim_labels=0b1f_0o1i->01bf",
        )
    )
    assert result.matmul_flops == 2 * 2 * 8 * 512 * 512 * 128


def test_expected_mfu_lies_between_the_cycles_and_the_executed_flops():
    def of(seconds: float, exposed: float) -> Estimate:
        breakdown = dict.fromkeys(KINDS, 0.0) | {"exposed communication": exposed * seconds}
        return Estimate(seconds, breakdown, 1.1e15, 1e14, (), ())

    model = 1e15  # of 1.2e15 executed
    a = model / 10 / V5E.peak_flops
    assert expected_mfu(of(10, 0.08), model, V5E) == pytest.approx((a, 0.75 / 1.2))
    assert expected_mfu(of(10, 0.18), model, V5E) == pytest.approx((a, 0.75 / 1.2 * 0.9))
    low, high = expected_mfu(of(6, 0), model, V5E)
    assert (low, high) == pytest.approx((0.75 / 1.2, a * 10 / 6))


# Programs of MaxText, whose MFU is published

CALIBRATION = Path(__file__).parent / "calibration"
PROGRAMS = json.loads((CALIBRATION / "programs.json").read_text())


@cache
def published_over_estimated(name: str) -> tuple[float, float]:
    """By A, the step's time, and by B, its executed FLOPs; neither scaled."""
    program = PROGRAMS[name]
    where = parse_slice(program["slice"])
    hlo = lzma.decompress((CALIBRATION / f"{name}.hlo.xz").read_bytes()).decode()
    result = estimate(hlo, where.chip, program["mesh"], where.shape)
    assert result.unknown == ()
    seconds_at_peak = program["model_flops"] / where.chip.peak_flops
    a = seconds_at_peak / result.step_seconds
    b = program["model_flops"] / result.executed_flops
    return program["published_mfu"] / a, program["published_mfu"] / b


@pytest.mark.parametrize("name", PROGRAMS)
def test_scaled_estimates_agree_with_published_mfu_within_their_spread(name):
    a, b = published_over_estimated(name)
    assert 1 / A_SPREAD < a / A_SCALE < A_SPREAD
    assert 1 / B_SPREAD < b / B_SCALE < B_SPREAD


@pytest.mark.parametrize(
    ("which", "scale", "spread"), [(0, A_SCALE, A_SPREAD), (1, B_SCALE, B_SPREAD)]
)
def test_scales_and_spreads_are_those_of_a_leave_one_out_fit(which, scale, spread):
    logs = [math.log(published_over_estimated(name)[which]) for name in PROGRAMS]
    n, total = len(logs), sum(logs)
    worst = max(abs(log - (total - log) / (n - 1)) for log in logs)
    assert round(math.exp(total / n), 2) == scale
    assert round(math.exp(worst), 2) == spread


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
    result = estimate(hlo, V5E, {"fsdp": 1}, (1, 1))
    flops = 2 * 2 * B * H * T * T * K * CAUSAL * DIAGONAL_WASTE
    assert result.attention_flops == pytest.approx(flops)
    assert result.breakdown["attention"] == pytest.approx(flops / (0.5 * V5E.peak_flops))
    assert (result.matmul_flops, result.unknown) == (0, ())
