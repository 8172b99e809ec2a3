"""Decoding speed of this code, of transformers + torch, of llama.cpp, and the limit: memory.

    python benchmarks/decode.py [--rounds 5] [--batches 1 8] [--core 0]

134.1M random parameters (dim 768, 12 layers, 12 heads, vocabulary 32,000), prompts of 128 tokens,
128 greedy tokens more. All on one core, in tokens per CPU-second, so that other work on the machine
disturbs little. Each engine lives in a process of its own and they take turns; figures are medians
over the rounds. The time of 128 tokens is that of 129 less that of 1, which is the prompt's. The
bound: the matrices that a token needs, read once a step at the bandwidth measured just before.
llama.cpp runs where `make clients` has installed it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LLAMACPP = ROOT / ".venv-llamacpp/bin/python"
PROMPT, NEW, VOCAB = 128, 128, 32_000
DIM, LAYERS, HEADS, MLP = 768, 12, 12, 2048
MATRIX_VALUES = (
    LAYERS * (4 * DIM * DIM + 3 * DIM * MLP) + VOCAB * DIM
)  # that a token is put through
# Engine: bytes of each of them.
ENGINES = {
    "llama_jax fp32": 4,
    "llama_jax bf16": 2,
    "llama_jax int8": 1,
    "transformers fp32": 4,
    "transformers bf16": 2,
    "llama.cpp f32": 4,
    "llama.cpp f16": 2,
    "llama.cpp q8_0": 34 / 32,
}


def prompts(batch: int) -> list[list[int]]:
    return [
        [1 + (7919 * (row + 1) * place) % 2000 for place in range(PROMPT)] for row in range(batch)
    ]


def llama_jax(kind: str, batch: int, _: Path) -> Callable[[int], object]:
    import jax
    from flax import nnx

    from llama_jax.config import MeshConfig
    from llama_jax.generation.decoder import to_decode_layout
    from llama_jax.generation.sampling import Sampling, generate
    from llama_jax.model import Llama
    from llama_jax.sharding import make_mesh

    cfg = shape("bfloat16" if kind == "bf16" else "float32")
    jax.sharding.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1]))
    decoder = to_decode_layout(jax.jit(lambda: Llama(cfg, nnx.Rngs(0)))(), int8=kind == "int8")
    greedy = Sampling(temperature=0.0)
    return lambda tokens: list(generate(decoder, prompts(batch), tokens, greedy))


def transformers(kind: str, batch: int, _: Path) -> Callable[[int], object]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    model: Any = LlamaForCausalLM(config).eval()
    model = model.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    ids = torch.tensor(prompts(batch))
    fixed = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    seen = torch.ones_like(ids)

    def run(tokens: int) -> object:
        with torch.inference_mode():
            return model.generate(ids, attention_mask=seen, max_new_tokens=tokens, **fixed)

    return run


def llama_cpp(kind: str, batch: int, directory: Path) -> Callable[[int], object]:
    import llama_cpp as c  # pyright: ignore[reportMissingImports]
    import numpy as np

    global silent  # or it would be freed while llama.cpp still calls it
    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    file = str(directory / kind / "model.gguf").encode()
    model = c.llama_model_load_from_file(file, c.llama_model_default_params())
    params = c.llama_context_default_params()
    params.n_ctx = batch * (PROMPT + NEW + 8)
    params.n_batch = params.n_ubatch = batch * PROMPT
    params.n_seq_max = batch
    params.n_threads = params.n_threads_batch = 1
    context = c.llama_init_from_model(model, params)
    tokens_in = c.llama_batch_init(batch * PROMPT, 0, 1)

    def feed(columns: list[list[int]], first: int) -> list[int]:
        """Return the likeliest token after each row's new tokens, the first at position `first`."""
        count, last = 0, []
        for row, tokens in enumerate(columns):
            for place, token in enumerate(tokens):
                tokens_in.token[count] = token
                tokens_in.pos[count] = first + place
                tokens_in.n_seq_id[count] = 1
                tokens_in.seq_id[count][0] = row
                tokens_in.logits[count] = place == len(tokens) - 1
                count += 1
            last.append(count - 1)
        tokens_in.n_tokens = count
        assert c.llama_decode(context, tokens_in) == 0
        logits = [np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (VOCAB,)) for i in last]
        return [int(np.argmax(row)) for row in logits]

    def run(tokens: int) -> object:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        drawn = feed(prompts(batch), 0)
        for place in range(PROMPT, PROMPT + tokens - 1):
            drawn = feed([[token] for token in drawn], place)
        return drawn

    return run


def shape(dtype: str):
    from llama_jax.config import ModelConfig

    return ModelConfig(
        num_layers=LAYERS,
        embed_dim=DIM,
        num_heads=HEADS,
        mlp_dim_override=MLP,
        vocab_size=VOCAB,
        compute_dtype=dtype,
    )


def write_files(directory: Path) -> None:
    """Write a checkpoint of random weights as llama.cpp's three kinds of file."""
    import dataclasses

    import jax
    from etils import epath

    from llama_jax.data.schedule import Schedule
    from llama_jax.formats import gguf, native
    from llama_jax.loading import load
    from llama_jax.run import checkpoint, managers
    from llama_jax.sharding import make_mesh
    from llama_jax.step import init_state

    experiment = load(str(ROOT / "experiments/quickstart.py"))
    experiment = dataclasses.replace(experiment, model=shape("float32"))
    workdir = epath.Path(directory / "run")
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices()[:1])),
        managers.open_manager(workdir, experiment.upkeep) as manager,
    ):
        checkpoint.save(
            manager, init_state(experiment), experiment, Schedule(), checkpoint.Origin()
        )
    for kind in ("f32", "f16", "q8_0"):
        (directory / kind).mkdir()
        gguf.write(native.read_step(workdir, 0, experiment), directory / kind, kind)


def serve(engine: str, batch: int, directory: Path) -> None:
    """Answer each line on stdin with the CPU-seconds for the prompts and for NEW tokens."""
    name, kind = engine.split()
    make = {"llama_jax": llama_jax, "transformers": transformers, "llama.cpp": llama_cpp}[name]
    run = make(kind, batch, directory)

    def seconds(tokens: int) -> float:
        start = time.process_time()
        run(tokens)
        return time.process_time() - start

    for tokens in (1, 1 + NEW):  # compiles
        seconds(tokens)
    print("ready", flush=True)
    for _ in sys.stdin:
        prompt = seconds(1)
        print(prompt, seconds(1 + NEW) - prompt, flush=True)


def bandwidth() -> float:
    """Measure the bytes/s that one core reads, by the fastest of the sums, extrema and products of
    numpy and torch, which read 18 to 36 GB/s here."""
    import numpy as np

    array = np.ones(2**26, np.float32)
    rates = []
    for _ in range(5):
        start = time.process_time()
        np.matmul(array, array)
        rates.append(array.nbytes / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        engine, batch, directory = args.serve
        return serve(engine, int(batch), Path(directory))
    from rich.console import Console

    os.sched_setaffinity(0, {args.core})  # which the engines inherit
    names = list(ENGINES)
    if not LLAMACPP.exists():
        print(f"no llama.cpp: `make clients` puts it at {LLAMACPP.relative_to(ROOT)}")
        names = [name for name in names if "llama.cpp" not in name]
    with tempfile.TemporaryDirectory() as directory:
        if LLAMACPP.exists():
            write = "import sys, decode, pathlib; decode.write_files(pathlib.Path(sys.argv[1]))"
            env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
            env["JAX_PLATFORMS"] = "cpu"
            subprocess.run([sys.executable, "-c", write, directory], env=env, check=True)
        for batch in args.batches:
            times = measure(names, batch, directory, args.rounds)
            Console(width=120).print(tabulate(batch, times))


def tabulate(batch: int, times: dict[str, list[tuple[float, float, float]]]):
    from rich.table import Table

    read = statistics.median(read for found in times.values() for *_, read in found)
    title = f"one core, {batch} x {PROMPT} prompt tokens, then {NEW} greedy ones"
    table = Table(title=f"{title}; it read {read / 1e9:.1f} GB/s")
    for column in ("engine", "tokens/CPU-s", "min", "max", "of transformers fp32"):
        table.add_column(column, justify="right")
    for column in ("bound", "of the bound", "prompt tokens/CPU-s"):
        table.add_column(column, justify="right")
    base = statistics.median(batch * NEW / new for _, new, _ in times["transformers fp32"])
    for name, found in times.items():
        rates = [batch * NEW / new for _, new, _ in found]
        bounds = [batch * read / (MATRIX_VALUES * ENGINES[name]) for *_, read in found]
        share = statistics.median(x / bound for x, bound in zip(rates, bounds, strict=True))
        table.add_row(
            name,
            *(f"{x:.1f}" for x in (statistics.median(rates), min(rates), max(rates))),
            f"{statistics.median(rates) / base:.2f}",
            f"{statistics.median(bounds):.0f}",
            f"{share:.0%}",
            f"{batch * PROMPT / statistics.median(prompt for prompt, *_ in found):.0f}",
        )
    return table


def measure(names: list[str], batch: int, directory: str, rounds: int):
    """Measure each engine, a tuple a round: seconds of the prompts, seconds of NEW tokens, and the
    bytes/s that were read just before."""
    engines = {}
    for name in names:
        python = str(LLAMACPP) if "llama.cpp" in name else sys.executable
        command = [python, __file__, "--serve", name, str(batch), directory]
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        engine = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert engine.stdin and engine.stdout
        assert engine.stdout.readline().strip() == "ready", name
        engines[name] = engine, engine.stdin, engine.stdout
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, (_, questions, answers) in engines.items():
            read = bandwidth()
            print("go", file=questions, flush=True)
            prompt, new = map(float, answers.readline().split())
            times[name].append((prompt, new, read))
    for engine, questions, _ in engines.values():
        questions.close()
        engine.wait()
    return times


if __name__ == "__main__":
    main()
