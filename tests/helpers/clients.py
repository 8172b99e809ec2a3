"""What other programs compute from exported files.

python tests/helpers/clients.py CLIENT DIRECTORY... is for test_clients.py, each client in an
environment of its own. Of each DIRECTORY, an export, the tokens [B, T] in tokens.npy beside it go
through the model, and the texts in DIRECTORY.texts.json, with what decoding gives back of them,
through the tokenizer: into DIRECTORY.CLIENT.npy, [B, T, V], and DIRECTORY.CLIENT.json.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np


def transformers(directory: Path, tokens, texts):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for (text, survives), row in zip(texts.items(), ids, strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True) == survives, text
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy(), ids


def litgpt(directory: Path, tokens, texts):
    import torch
    from litgpt import GPT, Config, Tokenizer  # pyright: ignore[reportMissingImports]

    model = GPT(Config.from_file(directory / "model_config.yaml"))
    model.load_state_dict(torch.load(directory / "lit_model.pth", mmap=True, weights_only=True))
    tokenizer = Tokenizer(directory)
    ids = [tokenizer.encode(text, bos=True).tolist() for text in texts]
    with torch.no_grad():
        return model.float().eval()(torch.tensor(tokens)).numpy(), ids


def llamacpp(directory: Path, tokens, texts):
    import llama_cpp  # pyright: ignore[reportMissingImports]

    global silent  # or it would be freed while llama.cpp still calls it
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    rows = []
    for row in tokens:
        model = llama_cpp.Llama(
            str(directory / "model.gguf"),
            n_ctx=len(row),
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        model.eval(row.tolist())
        rows.append(model.scores[: len(row)].copy())
    tokenize = model.tokenize  # pyright: ignore[reportPossiblyUnboundVariable]
    ids = [tokenize(text.encode(), add_bos=True, special=False) for text in texts]
    return np.stack(rows), ids


def meta(directory: Path, tokens, texts):
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
    return logits.numpy(), ids


if __name__ == "__main__":
    client = {
        "transformers": transformers,
        "transformers4": transformers,
        "litgpt": litgpt,
        "llamacpp": llamacpp,
        "meta": meta,
    }
    for directory in map(Path, sys.argv[2:]):
        tokens = np.load(directory.parent / "tokens.npy")
        texts = json.loads(Path(f"{directory}.texts.json").read_text())
        logits, ids = client[sys.argv[1]](directory, tokens, texts)
        np.save(f"{directory}.{sys.argv[1]}.npy", logits)
        Path(f"{directory}.{sys.argv[1]}.json").write_text(json.dumps(ids))
