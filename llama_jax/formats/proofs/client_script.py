"""What a program computes from exported files: run by client.py, in the program's own environment.

python client_script.py PARENT PACKAGE PLACE... imports the program, prints its version, and answers
the request in each PLACE. PARENT: the process that it ends with. Nothing of llama_jax is imported.
"""

import importlib.metadata
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Of (files, tokens [B, T], texts, whether bos comes first): logits [B, T, V], the tokens of each
# text, and what they are decoded to.
Compute = Callable[[Path, np.ndarray, list[str], bool], tuple[np.ndarray, list, list]]
ERROR = 4  # of llama.cpp's levels of what it logs


def transformers() -> Compute:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    def compute(files: Path, tokens: np.ndarray, texts: list[str], _: bool):
        model = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(files)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy(), ids, decoded

    return compute


def litgpt() -> Compute:
    import torch  # pyright: ignore[reportMissingImports]
    from litgpt import GPT, Config, Tokenizer  # pyright: ignore  # which takes the file beside it

    def compute(files: Path, tokens: np.ndarray, texts: list[str], bos: bool):
        model = GPT(Config.from_file(files / "model_config.yaml"))
        model.load_state_dict(torch.load(files / "lit_model.pth", mmap=True, weights_only=True))
        tokenizer = Tokenizer(files)
        ids = [tokenizer.encode(text, bos=bos) for text in texts]
        decoded = [tokenizer.decode(row) for row in ids]
        with torch.no_grad():
            logits = model.float().eval()(torch.tensor(tokens)).numpy()
        return logits, [row.tolist() for row in ids], decoded

    return compute


def llama_cpp() -> Compute:
    import llama_cpp  # pyright: ignore[reportMissingImports]

    errors = []

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            errors.append(text.decode(errors="replace"))

    global log  # or it would be freed while llama.cpp still calls it
    log = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(log, None)

    def compute(files: Path, tokens: np.ndarray, texts: list[str], _: bool):
        try:
            model = llama_cpp.Llama(
                str(files / "model.gguf"),
                n_ctx=tokens.shape[1],
                logits_all=True,
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
                verbose=False,
            )
        except ValueError as e:  # which does not say why
            raise ValueError(" ".join(errors) or str(e)) from e
        rows = []
        for row in tokens:
            model.reset()
            model.eval(row.tolist())
            rows.append(model.scores[: len(row)].copy())
        ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
        return np.stack(rows), ids, []  # it decodes a token at a time, which is no text of many

    return compute


CLIENTS = {"transformers": transformers, "litgpt": litgpt, "llama-cpp-python": llama_cpp}


def answer(compute: Compute, place: Path) -> None:
    """Read the request in a directory, and write the reply beside it."""
    request = json.loads((place / "request.json").read_text())
    tokens = np.load(place / "tokens.npy")
    files = Path(request["files"])
    logits, ids, decoded = compute(files, tokens, request["texts"], request["bos"])
    np.save(place / "logits.npy", logits)
    (place / "reply.json").write_text(json.dumps({"ids": ids, "decoded": decoded}))


def main() -> None:
    parent, package, *places = sys.argv[1:]
    process = runpy.run_path(str(Path(__file__).parents[2] / "process.py"))
    process["end_with_parent"](int(parent))
    try:
        compute = CLIENTS[package]()
        print(importlib.metadata.version(package))
        for place in places:
            answer(compute, Path(place))
    except Exception as e:  # whatever the program has
        sys.exit(" ".join(f"{type(e).__name__}: {e}".split()))


if __name__ == "__main__":
    main()
