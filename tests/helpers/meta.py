"""Meta's forward pass, of which there is no program to install.

python tests/helpers/meta.py PLACE... answers requests as clients do, in a process of its own, for
torch.
"""

import json
import math
import sys
from pathlib import Path

from llama_jax.formats.proofs.client_script import answer


def meta(directory: Path, tokens, texts, _):
    """Meta's model in a few lines: its names, its shards' axes, rotary pairs of neighbours."""
    import sentencepiece
    import torch

    params = json.loads((directory / "params.json").read_text())
    parts = [torch.load(p, weights_only=True) for p in sorted(directory.glob("*.pth"))]
    heads, dim, eps = params["n_heads"], params["dim"], params["norm_eps"]
    groups, width = params.get("n_kv_heads", heads), dim // heads
    hidden = int(2 * (4 * dim) / 3)
    hidden = int(params.get("ffn_dim_multiplier", 1) * hidden)
    hidden = -(-hidden // params["multiple_of"]) * params["multiple_of"]

    def weight(name):
        rows = [part[name + ".weight"].float() for part in parts]
        if rows[0].ndim == 1:
            assert all(torch.equal(rows[0], row) for row in rows)
            return rows[0]
        return torch.cat(rows, 1 if name.endswith(("wo", "w2", "tok_embeddings")) else 0)

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight(name)

    tokens = torch.tensor(tokens)
    B, T = tokens.shape
    frequency = params.get("rope_theta", 1e4) ** -(torch.arange(0, width, 2).float() / width)
    angle = torch.outer(torch.arange(T).float(), frequency)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(3)

    x = weight("tok_embeddings")[tokens]
    assert x.shape[-1] == dim
    for layer in range(params["n_layers"]):
        at, ff = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        y = norm(x, f"{at}_norm")
        q = rotate((y @ weight(f"{at}.wq").T).view(B, T, heads, width))
        k = rotate((y @ weight(f"{at}.wk").T).view(B, T, groups, width))
        v = (y @ weight(f"{at}.wv").T).view(B, T, groups, width)
        k, v = (t.repeat_interleave(heads // groups, dim=2) for t in (k, v))
        scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(width)
        scores = scores + torch.full((T, T), -torch.inf).triu(1)
        mixed = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v).reshape(B, T, dim)
        x = x + mixed @ weight(f"{at}.wo").T
        y = norm(x, f"layers.{layer}.ffn_norm")
        gate = torch.nn.functional.silu(y @ weight(f"{ff}.w1").T)
        assert gate.shape[-1] == hidden
        x = x + (gate * (y @ weight(f"{ff}.w3").T)) @ weight(f"{ff}.w2").T
    logits = norm(x, "norm") @ weight("output").T
    tokenizer = sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))
    ids = [[tokenizer.bos_id(), *tokenizer.encode(text)] for text in texts]
    return logits.numpy(), ids, [tokenizer.decode(row) for row in ids]


if __name__ == "__main__":
    for place in sys.argv[1:]:
        answer(meta, Path(place))
