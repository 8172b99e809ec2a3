"""The LLaMA decoder (arXiv 2302.13971 section 2.2). Shape letters: sharding.py.

Parameters of the blocks are stacked along a leading layer axis that lax.scan takes away, so their
suffixes leave it out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, AxisType, reshard
from jax.sharding import PartitionSpec as P

from llama_jax.attention import attend_within_documents
from llama_jax.collectives import einsum, embed
from llama_jax.config import REMAT_POLICIES, Execution, ModelConfig, UserError
from llama_jax.sharding import MESH_AXES, activation_spec, param_spec


def weight(rngs: nnx.Rngs, std: float, dims: str, *shape: int) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, out_sharding=param_spec(dims)))


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) in fp32, cast back, then scaled: the order of Meta's code."""

    def __init__(self, dim: int, eps: float):
        self.scale_D = nnx.Param(jnp.ones(dim, out_sharding=P()))
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32_BTD = x_BTD.astype(jnp.float32)
        x32_BTD *= jax.lax.rsqrt(jnp.mean(x32_BTD**2, axis=-1, keepdims=True) + self.eps)
        return x32_BTD.astype(x_BTD.dtype) * self.scale_D[...][None, None]


Rotation = tuple[jax.Array, jax.Array]


def rotation_of(positions_BT: jax.Array, head_dim: int, theta: float) -> Rotation:
    """Compute sin_BTK and cos_BTK of position * theta^(-2i / head_dim), K of head_dim / 2, fp32."""
    frequency_K = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle_BTK = positions_BT[..., None].astype(jnp.float32) * frequency_K[None, None]
    return jnp.sin(angle_BTK), jnp.cos(angle_BTK)


def rotate(x: jax.Array, rotation: Rotation, scale: float = 1.0) -> jax.Array:
    """Apply the rotary embedding to x_BT...K, and multiply by scale.

    Element i is paired with i + K/2, Hugging Face's layout.
    """
    K = x.shape[-1]
    # A product with a permutation brings the partners together, exactly: on a TPU the matrix unit
    # does it on the way, where a split and a concatenation cost two passes over memory.
    partner_KK = jnp.roll(jnp.eye(K, dtype=x.dtype), K // 2, axis=0)
    partner = jnp.einsum("...k,kl->...l", x, partner_KK, precision=jax.lax.Precision.HIGHEST)
    head_axes = tuple(range(2, x.ndim - 1))
    sin, cos = (jnp.expand_dims(scale * table, head_axes) for table in rotation)
    sin, cos = jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)
    return (x.astype(jnp.float32) * cos + partner.astype(jnp.float32) * sin).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, G, K = cfg.embed_dim, cfg.kv_heads, cfg.head_dim
        R = cfg.num_heads // G
        self.wq_DGRK = weight(rngs, cfg.init_std, "DGRK", D, G, R, K)
        self.wk_DGK = weight(rngs, cfg.init_std, "DGK", D, G, K)
        self.wv_DGK = weight(rngs, cfg.init_std, "DGK", D, G, K)
        self.wo_GRKD = weight(rngs, cfg.init_std, "GRKD", G, R, K, D)

    def __call__(self, x_BTD: jax.Array, rotation: Rotation, attend: Callable, out: P):
        # Scaled here, in fp32, and not as logits: an attention kernel then takes q as it is.
        scale = self.wq_DGRK.shape[-1] ** -0.5
        q_BTGRK = rotate(einsum("BTD,DGRK->BTGRK", x_BTD, self.wq_DGRK[...]), rotation, scale)
        k_BTGK = rotate(einsum("BTD,DGK->BTGK", x_BTD, self.wk_DGK[...]), rotation)
        v_BTGK = einsum("BTD,DGK->BTGK", x_BTD, self.wv_DGK[...])
        context_BTGRK = attend(
            checkpoint_name(q_BTGRK, "query"),
            checkpoint_name(k_BTGK, "key"),
            checkpoint_name(v_BTGK, "value"),
        )
        out_BTD = einsum("BTGRK,GRKD->BTD", context_BTGRK, self.wo_GRKD[...], out)
        return checkpoint_name(out_BTD, "out")


@jax.custom_vjp
def silu_mul(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
    """Compute silu(gate) * up."""
    return jax.nn.silu(gate_BTF) * up_BTF


def _silu_mul_forward(gate_BTF, up_BTF):
    return silu_mul(gate_BTF, up_BTF), (gate_BTF, up_BTF)


def _silu_mul_backward(operands, grad_BTF):
    # Both gradients are written once. Without the barrier XLA computes them again inside each of
    # the four products that read them: a tenth of a 7B layer's time on v5e, by its own estimate.
    gate_BTF, up_BTF = operands
    sigmoid_BTF = jax.nn.sigmoid(gate_BTF)
    silu_BTF = gate_BTF * sigmoid_BTF
    dgate_BTF = grad_BTF * up_BTF * (sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF))
    return jax.lax.optimization_barrier((dgate_BTF, grad_BTF * silu_BTF))


silu_mul.defvjp(_silu_mul_forward, _silu_mul_backward)


class SwiGLU(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, F = cfg.embed_dim, cfg.mlp_dim
        self.w_gate_DF = weight(rngs, cfg.init_std, "DF", D, F)
        self.w_up_DF = weight(rngs, cfg.init_std, "DF", D, F)
        self.w_down_FD = weight(rngs, cfg.init_std, "FD", F, D)

    def __call__(self, x_BTD: jax.Array, out: P) -> jax.Array:
        gate_BTF = checkpoint_name(einsum("BTD,DF->BTF", x_BTD, self.w_gate_DF[...]), "gate")
        up_BTF = checkpoint_name(einsum("BTD,DF->BTF", x_BTD, self.w_up_DF[...]), "up")
        return einsum("BTF,FD->BTD", silu_mul(gate_BTF, up_BTF), self.w_down_FD[...], out)


class Block(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
        self.attn = Attention(cfg, rngs)
        self.mlp_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
        self.mlp = SwiGLU(cfg, rngs)

    def __call__(self, x_BTD: jax.Array, rotation: Rotation, attend: Callable):
        # The residual may be split in time; in a sub-layer time is whole, and heads or width split.
        split, whole = jax.typeof(x_BTD).sharding.spec, activation_spec("BTD")
        with jax.named_scope("attention"):
            normed_BTD = reshard(self.attn_norm(x_BTD), whole)
            x_BTD += self.attn(normed_BTD, rotation, attend, split)
        with jax.named_scope("mlp"):
            x_BTD += self.mlp(reshard(self.mlp_norm(x_BTD), whole), split)
        return x_BTD


ANYWHERE = Execution()  # by the reference kernel, on any device


class Llama(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.embed_VD = weight(rngs, cfg.init_std, "VD", cfg.vocab_size, cfg.embed_dim)
        self.layers = jax.vmap(lambda rngs: Block(cfg, rngs))(rngs.split(cfg.num_layers))
        self.final_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
        if not cfg.tie_embeddings:
            self.lm_head_DV = weight(rngs, cfg.init_std, "DV", cfg.embed_dim, cfg.vocab_size)
        self.cfg = cfg

    @property
    def head_DV(self) -> jax.Array:
        return self.embed_VD[...].T if self.cfg.tie_embeddings else self.lm_head_DV[...]

    def hidden(
        self, tokens_BT, segments_BT, positions_BT, execution: Execution = ANYWHERE
    ) -> jax.Array:
        """Compute x_BTD, the output of the final norm, for packed rows of int32 documents.

        segments_BT: the document a token is of; positions_BT: its position in that document.
        execution: the kernel of attention, and what is kept for the backward pass.
        """
        with jax.named_scope("embedding"):
            x_BTD = embed(self.embed_VD[...], tokens_BT)
        segments_BT, positions_BT = (
            reshard(x_BT, activation_spec("BT")) for x_BT in (segments_BT, positions_BT)
        )
        rotation = rotation_of(positions_BT, self.cfg.head_dim, self.cfg.rope_theta)

        def attend(q_BTGRK, k_BTGK, v_BTGK):
            return attend_within_documents(execution, q_BTGRK, k_BTGK, v_BTGK, segments_BT)

        def block(x_BTD, layer):
            x_BTD = checkpoint_name(x_BTD, "residual")
            return layer(x_BTD, rotation, attend), None

        if execution.remat != "everything":
            remat = REMAT_POLICIES[execution.remat]
            policy = jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=remat.save,
                names_which_can_be_offloaded=remat.offload,
                offload_src="device",
                offload_dst="pinned_host",
            )
            block = jax.checkpoint(block, policy=policy, prevent_cse=False)
        x_BTD, _ = jax.lax.scan(block, x_BTD, self.layers)
        return reshard(self.final_norm(x_BTD), activation_spec("BTD"))

    def __call__(
        self, tokens_BT, segments_BT, positions_BT, execution: Execution = ANYWHERE
    ) -> jax.Array:
        """Compute logits_BTV in fp32 of packed rows, see hidden()."""
        x_BTD = self.hidden(tokens_BT, segments_BT, positions_BT, execution)
        return einsum("BTD,DV->BTV", x_BTD, self.head_DV, dtype=jnp.float32)


# Its parameters by name: whoever counts, lays out or converts them has to know every one.


def by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves under names such as "layers/attn/wq_DGRK"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in leaves
    }


@functools.cache
def param_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its name, layers stacked. Needs no device. Raise
    UserError for a model without a vocabulary."""
    if cfg.vocab_size == 0:
        raise UserError("model.vocab_size: got 0, which is known once the experiment is loaded")
    # Replicas only, which split no parameter; of the size of the mesh at hand, as JAX wants it.
    sizes = (max(1, jax.sharding.get_abstract_mesh().size), *(1,) * (len(MESH_AXES) - 1))
    whole = AbstractMesh(sizes, MESH_AXES, (AxisType.Explicit,) * len(MESH_AXES))
    with jax.sharding.use_abstract_mesh(whole):
        model = jax.eval_shape(lambda: Llama(cfg, nnx.Rngs(0)))
    return {name: leaf.shape for name, leaf in by_name(model).items()}
