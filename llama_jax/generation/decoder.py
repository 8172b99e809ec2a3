"""The decoder laid out for generation, where the time goes into reading every weight once a token.

The layers are apart instead of stacked, and a matrix lies with the one letter that a product sums
over last: XLA:CPU multiplies such rows with a vector at the speed of memory, columns at 3/4 of it,
and rows of several letters (GRK, here H) at 1/4, as it computes each element's indices again.

Each device keeps its heads, its share of the MLP's width and of the vocabulary; two sums a layer
join them. What is computed is model.py's, for T tokens more of each row. Shape letters:
sharding.py.
"""

import math
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier
from jax.sharding import reshard

from llama_jax.config import MeshConfig, ModelConfig, UserError
from llama_jax.generation.int8 import Int8, quantize
from llama_jax.generation.kv_cache import KVCache, attend_to_cache
from llama_jax.model import Llama, RMSNorm, by_name, rotate, rotation_of
from llama_jax.sharding import activation_spec

Matrix = jax.Array | Int8

# The parameters that to_decode_layout takes over. All of a norm's go with it.
LAID_OUT = {
    *("embed_VD", "lm_head_DV"),
    *(f"layers/attn/{name}" for name in ("wq_DGRK", "wk_DGK", "wv_DGK", "wo_GRKD")),
    *(f"layers/mlp/{name}" for name in ("w_gate_DF", "w_up_DF", "w_down_FD")),
}
NORMS = ("layers/attn_norm/", "layers/mlp_norm/", "final_norm/")


@flax.struct.dataclass
class Layer:
    attn_norm: RMSNorm
    wq_GRKD: Matrix
    wk_GKD: Matrix
    wv_GKD: Matrix
    wo_DH: Matrix
    mlp_norm: RMSNorm
    w_gate_FD: Matrix
    w_up_FD: Matrix
    w_down_DF: Matrix


@flax.struct.dataclass
class Decoder:
    """Matrices are of cfg.compute_dtype or Int8, all else is of cfg.compute_dtype."""

    embed_VD: jax.Array
    layers: tuple[Layer, ...]
    final_norm: RMSNorm
    head_VD: Matrix
    cfg: ModelConfig = flax.struct.field(pytree_node=False)

    def hidden(self, tokens_BT, first_B, start, caches: list[KVCache]):
        """Return x_BTD, the output of the final norm, and the caches, in shard_map.

        The tokens go to positions start, start + 1, ... of the caches. A row begins at position
        first_B of them, and looks at nothing before it.
        """
        cached_at_T = start + jnp.arange(tokens_BT.shape[1])
        cached_at_C = jnp.arange(caches[0][0].shape[-2])
        begun_BC = cached_at_C[None] >= first_B[:, None]
        past_TC = cached_at_C[None] <= cached_at_T[:, None]
        mask_BTC = begun_BC[:, None] & past_TC[None]
        positions_BT = cached_at_T[None] - first_B[:, None]
        rotation = rotation_of(positions_BT, self.cfg.head_dim, self.cfg.rope_theta)

        x_BTD, updated = embed(self.embed_VD, tokens_BT), []
        for layer, cache in zip(self.layers, caches, strict=True):
            normed_BTD = layer.attn_norm(x_BTD)
            q_BTGRK = rotate(product(normed_BTD, layer.wq_GRKD), rotation, self.cfg.head_dim**-0.5)
            k_BTGK = rotate(product(normed_BTD, layer.wk_GKD), rotation)
            v_BTGK = product(normed_BTD, layer.wv_GKD)
            context_BTH, cache = attend_to_cache(start, mask_BTC, cache, q_BTGRK, k_BTGK, v_BTGK)
            x_BTD += jax.lax.psum(product(context_BTH, layer.wo_DH), "tensor")
            normed_BTD = layer.mlp_norm(x_BTD)
            gate_BTF = product(normed_BTD, layer.w_gate_FD)
            up_BTF = product(normed_BTD, layer.w_up_FD)
            # silu(gate) * up, divided last, as attention is: XLA:CPU computes a quotient once, but
            # a product or a reshape again for every row of the matrix that the vector meets next.
            hidden_BTF = gate_BTF * up_BTF / (1 + jnp.exp(-gate_BTF))
            x_BTD += jax.lax.psum(product(hidden_BTF, layer.w_down_DF), "tensor")
            updated.append(cache)
        return self.final_norm(x_BTD), updated

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return logits_BTV in fp32 of hidden()'s output. In shard_map: of a device's rows."""
        logits_BTV = product(x_BTD, self.head_VD, jnp.float32)
        return jax.lax.all_gather(logits_BTV, "tensor", axis=2, tiled=True)


def specs_of(tree):
    """Return how its arrays are split, for shard_map."""
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)


def mesh_for(cfg: ModelConfig, num_devices: int) -> MeshConfig:
    """Return the mesh of as many devices as can be used.

    Each token's work is split over `tensor` as far as heads, MLP width and vocabulary allow; over
    what is left, the rows are.
    """
    tensor = math.gcd(num_devices, cfg.kv_heads, cfg.mlp_dim, cfg.vocab_size)
    return MeshConfig(fsdp=math.gcd(num_devices // tensor, cfg.embed_dim), tensor=tensor)


def embed(embed_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Look up x_BTD of tokens of the whole vocabulary, by devices that each have a share of it.

    The barrier keeps XLA:CPU from widening the table once for all steps of a loop.
    """
    tokens_BT, embed_VD = optimization_barrier((tokens_BT, embed_VD))
    row_BT = tokens_BT - jax.lax.axis_index("tensor") * embed_VD.shape[0]
    here_BT = (row_BT >= 0) & (row_BT < embed_VD.shape[0])
    return jax.lax.psum(jnp.where(here_BT[..., None], embed_VD[row_BT], 0), "tensor")


def product(x: jax.Array, w: Matrix, dtype=None) -> jax.Array:
    """Multiply x_BT... with the matrix, summed in fp32 over all of x's letters but B and T.

    These are the last of w's. dtype: of the result, by default x's.

    XLA:CPU multiplies a narrow matrix with several vectors by first writing all of it wide, and
    reads that. As a sum of products in one loop it widens what it has just read, and is no slower
    for fp32. The barrier keeps it from computing x again for every row of the matrix, and from
    widening a matrix once for all steps of a loop.
    """
    values = w.values if isinstance(w, Int8) else w
    x_NI = x.reshape(x.shape[0] * x.shape[1], -1)
    x_NI, w_OI = optimization_barrier((x_NI, values.reshape(-1, x_NI.shape[1])))
    if x_NI.shape[0] == 1:
        y_NO = _dot(x_NI, w_OI)
    else:
        y_NO = jax.lax.platform_dependent(x_NI, w_OI, cpu=_sum, default=_dot)
    y = y_NO.reshape(*x.shape[:2], *values.shape[:-1])
    if isinstance(w, Int8):
        y *= w.scale.reshape(y.shape[2:])[None, None]
    return y.astype(dtype or x.dtype)


def _dot(x_NI: jax.Array, w_OI: jax.Array) -> jax.Array:
    w_OI = w_OI.astype(x_NI.dtype)
    return jnp.dot(x_NI, w_OI.T, preferred_element_type=jnp.float32)


def _sum(x_NI: jax.Array, w_OI: jax.Array) -> jax.Array:
    x_NI, w_OI = x_NI.astype(jnp.float32), w_OI.astype(jnp.float32)
    return optimization_barrier(jnp.sum(w_OI[:, None] * x_NI[None], axis=2)).T


def to_decode_layout(model: Llama, int8: bool = False) -> Decoder:
    """Lay out a model for decoding, on the mesh of jax.set_mesh; int8: matrices in eight bits.

    Raise UserError for a parameter that Decoder does not compute with.
    """
    cfg = model.cfg
    for name in by_name(model):
        if name not in LAID_OUT and not name.startswith(NORMS):
            raise UserError(
                f"model: llama_jax/generation/decoder.py, which samples, does not compute with "
                f"parameter {name}; add it to LAID_OUT, Layer and Decoder there"
            )

    def rows(w: jax.Array, dims: str) -> Matrix:
        """Put the first letter, which a product sums over, last."""
        w = reshard(jnp.moveaxis(w, 0, -1), activation_spec(dims[1:] + dims[0]))
        return quantize(w) if int8 else w.astype(cfg.compute_dtype)

    def cast(norm: RMSNorm) -> RMSNorm:
        return jax.tree.map(lambda scale_D: scale_D.astype(cfg.compute_dtype), norm)

    @jax.jit
    def layer(blocks, i: jax.Array) -> Layer:
        block = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False), blocks)
        attn, mlp = block.attn, block.mlp
        return Layer(
            attn_norm=cast(block.attn_norm),
            wq_GRKD=rows(attn.wq_DGRK[...], "DGRK"),
            wk_GKD=rows(attn.wk_DGK[...], "DGK"),
            wv_GKD=rows(attn.wv_DGK[...], "DGK"),
            wo_DH=rows(attn.wo_GRKD[...].reshape(-1, cfg.embed_dim), "HD"),
            mlp_norm=cast(block.mlp_norm),
            w_gate_FD=rows(mlp.w_gate_DF[...], "DF"),
            w_up_FD=rows(mlp.w_up_DF[...], "DF"),
            w_down_DF=rows(mlp.w_down_FD[...], "FD"),
        )

    @jax.jit
    def ends(model: Llama):
        embed_VD = reshard(model.embed_VD[...], activation_spec("VD")).astype(cfg.compute_dtype)
        return embed_VD, cast(model.final_norm), rows(model.head_DV, "DV")

    embed_VD, final_norm, head_VD = ends(model)
    layers = tuple(layer(model.layers, i) for i in range(cfg.num_layers))
    return Decoder(embed_VD, layers, final_norm, head_VD, cfg)
