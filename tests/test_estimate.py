"""The time of a program: loops, branches and collectives worked by hand."""

import pytest

from helpers.programs import COMPUTE, COST, DOT, MESH, V5E, entry, fusion, of_v5e
from llama_jax.plan.estimate import (
    KINDS,
)

# All-gather of 512 KiB from each of 4 devices along one axis of v5e:4x4, which is not closed.
SENT = 3 * 2**19

GATHER = SENT / (V5E.link_bandwidth / 2)

assert GATHER < COMPUTE < 2 * GATHER  # the tests below count on it

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
