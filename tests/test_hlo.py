"""FLOPs of operations, by their text: against hand-worked figures and XLA's counts."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from helpers.programs import DOT, V5E, entry, fusion, of_v5e
from llama_jax.plan.estimate import (
    estimate,
)
from llama_jax.plan.hlo import CAUSAL, DIAGONAL_WASTE

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
    hlo, costs = compiled.as_text(), compiled.cost_analysis()
    assert hlo is not None and costs is not None
    result = estimate(hlo, V5E, {"fsdp": 1}, (1, 1))
    assert result.matmul_flops == costs["flops"]


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
