"""The one door: llama-jax VERB ... Rooms are imported when their verb is called."""

import argparse
import contextlib
import dataclasses
import glob
import json
import logging
import math
import multiprocessing.resource_tracker
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from llama_jax import config
from llama_jax.config import Experiment, UserError

EXPIRY = 60.0  # of a claim in a sweep, in seconds


def main() -> None:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        # JAX tries libtpu, which `plan` needs, where there is no TPU, too. Without these it prints
        # five lines about the metadata of a TPU VM.
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    try:
        sys.exit(args.run(args))
    except UserError as e:
        print(f"llama-jax {args.verb}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"llama-jax {args.verb}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or its flush fails at exit
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:  # a disk that fills up, a share that goes away
        print(f"llama-jax {args.verb}: {e}", file=sys.stderr)
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="llama-jax", description="Train LLaMA from public data.")
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, run, help, *, experiment=False, workdir=False, overrides=True):
        v = verbs.add_parser(name, help=help, description=help)
        v.set_defaults(run=run)
        if experiment:
            v.add_argument(
                "experiment", metavar="EXPERIMENT", help="a file such as experiments/quickstart.py"
            )
        if workdir:
            v.add_argument(
                "workdir",
                metavar="WORKDIR[@STEP]",
                help="a run; its newest checkpoint unless @STEP",
            )
        if not overrides:
            return v
        v.add_argument(
            "--set",
            action="append",
            default=[],
            dest="overrides",
            metavar="SECTION.FIELD=VALUE",
            help="replace a field of the experiment, e.g. model.num_layers=8; may be repeated",
        )
        return v

    v = verb("train", train, "train, or go on training, an experiment", experiment=True)
    v.add_argument(
        "--workdir",
        help="where everything of the run lies (default: runs/NAME of the experiment file)",
    )
    v.add_argument(
        "--accept-changes", action="store_true", help="go on in a workdir begun with other values"
    )
    v.add_argument(
        "--slice",
        metavar="SLICE",
        help="take the experiment's mesh, remat and flags for this slice, e.g. v5p:4x4x4",
    )
    v.add_argument(
        "--profile",
        type=number(int, 1),
        default=0,
        metavar="STEPS",
        help="trace this many early steps into WORKDIR/profile, for TensorBoard",
    )
    v.add_argument(
        "--multihost",
        nargs="?",
        const="auto",
        metavar="ADDRESS:PORT,PROCESSES,INDEX",
        help="first join the other processes of the job; a TPU pod needs no value",
    )

    verb("show", show, "print what an experiment amounts to", experiment=True)

    v = verb("plan", plan, "say whether an experiment fits a slice, and its cost", experiment=True)
    v.add_argument(
        "--slice",
        action="append",
        default=[],
        dest="slices",
        metavar="SLICE",
        help="e.g. v5p:4x4x8, 2xv5e:16x16 or h100:64; may be repeated (default: mesh.slice)",
    )
    v.add_argument("--price", type=number(float, 0), help="of one chip for one hour")
    v.add_argument("--json", action="store_true", help="print JSON, a list with one item a slice")
    v.add_argument("--figure", type=Path, help="draw memory and time into this .png or .svg")
    v.add_argument(
        "--search", action="store_true", help="find the best mesh, micro-batches and remat policy"
    )
    v.add_argument("--out", type=Path, help="of --search: write the winner as an experiment file")
    v.add_argument("--jobs", type=number(int, 1), help="of --search: compilers at a time")
    v.add_argument(
        "--compiles",
        type=number(int, 1),
        default=8,
        help="of --search: programs to compile for each slice at the most (default: 8)",
    )

    v = verb(
        "prepare", prepare, "tokenize an experiment's corpus into its token store", experiment=True
    )
    v.add_argument("--workers", type=number(int, 1), default=1, help="processes (default: 1)")

    v = verb(
        "tokenizer", tokenizer, "train a tokenizer on an experiment's mixture", experiment=True
    )
    v.add_argument(
        "--vocab-size", type=number(int, 1), required=True, help="pieces, the 256 bytes included"
    )
    v.add_argument(
        "--max-mb", type=number(float, 0.1), default=20.0, help="text to train on (default: 20 MB)"
    )
    v.add_argument("--out", type=Path, required=True, help="the model file to write")

    verb(
        "evaluate",
        evaluate,
        "held-out loss by source, beside n-gram models of the same text",
        workdir=True,
    )

    v = verb("sample", sample, "continue prompts with a trained or another framework's model")
    v.add_argument(
        "workdir",
        metavar="WORKDIR[@STEP]",
        nargs="?",
        help="a run; its newest checkpoint unless @STEP",
    )
    v.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        type=Path,
        help="instead of a run, what import takes, through a temporary directory",
    )
    v.add_argument("--tokenizer", type=Path, help="of --from, where none comes with it")
    v.add_argument(
        "--prompt", action="append", required=True, help="text to continue; may be repeated"
    )
    v.add_argument(
        "--max-tokens", type=number(int, 1), default=100, help="tokens to add (default: 100)"
    )
    v.add_argument(
        "--temperature",
        type=number(float, 0),
        default=0.8,
        help="0 takes the likeliest (default: 0.8)",
    )
    v.add_argument(
        "--top-p", type=number(float, 0, 1), default=0.95, help="nucleus (default: 0.95)"
    )
    v.add_argument("--top-k", type=number(int, 1), help="draw from the likeliest (default: all)")
    v.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the draw (default: 0)"
    )
    v.add_argument(
        "--stop",
        action="append",
        default=[],
        type=some_text,
        help="end a continuation before this text; may be repeated",
    )
    v.add_argument(
        "--int8",
        action="store_true",
        help="hold the matrices in eight bits, and say what it costs in perplexity",
    )
    v.add_argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="text as it comes, or one JSON object a prompt (default: text)",
    )

    v = verb("export", export, "write a model in another framework's format")
    v.add_argument(
        "source",
        metavar="WORKDIR[@STEP]|SOURCE",
        help="a run, its newest checkpoint unless @STEP; or what import takes",
    )
    v.add_argument(
        "--to",
        required=True,
        choices=Lazy(lambda: _convert().export_formats()),
        metavar="FORMAT",
        help="one of %(choices)s",
    )
    v.add_argument("--out", type=Path, required=True, help="the directory to write")
    v.add_argument(
        "--type",
        default="bf16",
        choices=Lazy(lambda: _convert().export_dtypes()),
        metavar="TYPE",
        help="of the numbers, one of %(choices)s; the last two are of gguf (default: bf16)",
    )
    v.add_argument(
        "--shard-size",
        type=number(float, 1e-6),
        metavar="GB",
        help="of hf: a file's size at the most, or one tensor (default: 5)",
    )
    v.add_argument(
        "--shards",
        type=int,
        choices=(1, 2, 4, 8),
        help="of meta: files to split each matrix over (default: 1)",
    )
    v.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare the files' logits with the checkpoint's",
    )
    v.add_argument("--tokenizer", type=Path, help="of SOURCE, where none comes with it")

    v = verb("import", import_, "make a workdir of another framework's model", overrides=False)
    v.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a directory of Hugging Face's or Meta's, a .gguf, or a llama2.c .bin",
    )
    v.add_argument("--out", type=Path, required=True, metavar="WORKDIR", help="the run to write")
    v.add_argument("--tokenizer", type=Path, help="a SentencePiece model, where none comes with it")

    v = verb("plot", plot, "draw the loss curves of a run into its loss.png", overrides=False)
    v.add_argument("workdir", metavar="WORKDIR", help="a run, finished or not")

    v = verb("sweep", sweep, "train the experiments of a file, each once")
    v.add_argument("file", metavar="FILE", help="with get_sweep(), as in experiments/sweeps")
    v.add_argument("--dry-run", action="store_true", help="only say what it is and what is done")
    v.add_argument("--slice", metavar="SLICE", help="of --dry-run: estimate time for it")
    v.add_argument("--price", type=positive(), help="of --slice: dollars for a chip and hour")
    v.add_argument(
        "--workdir", help="a directory or bucket, shared by all machines (default: runs/NAME)"
    )
    v.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="begin with every Nth run from the Ith, then take what the other N-1 machines left",
    )
    v.add_argument("--retry", action="store_true", help="try again what failed")
    v.add_argument(
        "--expiry",
        type=number(float, 4),
        metavar="SECONDS",
        help=f"without a sign of life, after which a run is taken over (default: {EXPIRY:g})",
    )

    v = verb("fit", fit, "fit scaling laws to a table of runs, three ways", overrides=False)
    v.add_argument("table", type=Path, metavar="RESULTS.csv", help="a row a run, or a row a point")
    v.add_argument("--n", metavar="COLUMN", help="parameters (default: N if there is one)")
    v.add_argument("--d", metavar="COLUMN", help="training tokens (default: D if there is one)")
    v.add_argument("--flops", metavar="COLUMN", help="FLOPs (default: C if there is one, or 6ND)")
    v.add_argument("--loss", metavar="COLUMN", default="loss", help="(default: loss)")
    v.add_argument(
        "--run",
        metavar="COLUMN",
        default="run",
        dest="run_column",
        help="which training curve a row is a point of (default: run, if there is one)",
    )
    v.add_argument(
        "--min-tokens-per-param",
        type=number(float, 0),
        default=0.0,
        metavar="X",
        help="drop others",
    )
    v.add_argument(
        "--bootstraps", type=number(int, 2), default=1000, help="for intervals (default: 1000)"
    )
    v.add_argument("--seed", type=number(int, 0), default=0, help="of the bootstraps (default: 0)")
    v.add_argument("--out", type=Path, help="for laws.json and figures (default: runs/NAME)")
    v.add_argument("--json", action="store_true", help="print what laws.json holds")

    v = verb("budget", budget, "choose the model to train for a demand", overrides=False)
    v.add_argument(
        "--laws", required=True, help="a laws.json of fit, or the name of a published law"
    )
    v.add_argument("--inference-tokens", type=positive(), help="served over the model's life")
    v.add_argument("--requests-per-day", type=positive(), help="instead, with these two:")
    v.add_argument("--tokens-per-request", type=positive(), help="prompt and answer")
    v.add_argument("--months", type=positive(), help="of serving")
    target = v.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--quality-of", type=positive(), help="N: the loss of a compute-optimal model of N"
    )
    target.add_argument("--loss", type=positive(), help="nats a token, as in the law's table")
    target.add_argument(
        "--train-flops", type=positive(), help="C: the loss of a compute-optimal model of C"
    )
    for unit, name in (("flops", "FLOPs"), ("money", "dollars"), ("energy", "MWh")):
        target.add_argument(
            f"--total-{unit}", type=positive(), help=f"X: the best loss for {name} in all"
        )
    v.add_argument("--train-chip", default="a100", help="a chip of plan (default: a100)")
    v.add_argument("--serve-chip", default="a100", help="a chip of plan (default: a100)")
    v.add_argument("--train-price", type=positive(), help="dollars for a chip and hour")
    v.add_argument("--serve-price", type=positive(), help="dollars for a chip and hour")
    for name, meaning in (
        ("train-mfu", "share of the peak that training reaches"),
        ("prefill-mfu", "the same for prompts"),
        ("decode-mfu", "the same for answers"),
    ):
        v.add_argument(f"--{name}", type=positive(1), help=meaning)
    v.add_argument(
        "--prompt-share", type=number(float, 0, 1), help="prompts' share of the tokens served"
    )
    v.add_argument("--max-weights-gb", type=positive(), help="memory for the weights, bf16")
    v.add_argument("--max-ms-per-token", type=positive(), help="on one serving chip, batch 1")
    v.add_argument("--figure", type=Path, help="draw cost against demand into this .png or .svg")
    v.add_argument("--json", action="store_true", help="print JSON")
    return p


class Lazy(Iterable[str]):
    """Choices of an option that are made when they are asked for."""

    def __init__(self, make: Callable[[], Collection[str]]):
        self._make = make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __contains__(self, value: object) -> bool:
        return value in self._make()


def _convert():
    from llama_jax.formats import convert

    return convert


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """A parser of an option's value, which argparse names when it refuses it."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            accepted = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"got {text}, expected {accepted}")
        return value

    parse.__name__ = kind.__name__
    return parse


def positive(high: float = sys.float_info.max) -> Callable[[str], float]:
    """As number, of one that is finite and above 0."""

    def parse(text: str) -> float:
        value = float(text)
        if not 0 < value <= high:
            limit = f", at most {high}" if high < sys.float_info.max else ""
            raise argparse.ArgumentTypeError(f"got {text}, expected a finite number above 0{limit}")
        return value

    parse.__name__ = "float"
    return parse


def shard(text: str) -> tuple[int, int]:
    """1/3 as (0, 3). argparse names the option when it is refused."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N, e.g. 1/3")
    return int(i) - 1, int(n)


def some_text(given: str) -> str:
    if not given:
        raise argparse.ArgumentTypeError("got no text, expected a character at the least")
    return given


def train(args: argparse.Namespace) -> int:
    experiment = config.load(args.experiment, args.overrides, args.slice)
    workdir = args.workdir or f"runs/{Path(args.experiment).stem}"
    from llama_jax.data import store

    if args.multihost:
        _join(args.multihost)
    elif not store.exists(experiment.data):
        print(f"preparing the token store {experiment.data.store}, once", file=sys.stderr)
        sets = [word for text in args.overrides for word in ("--set", text)]
        # In a process of its own: tokenizing needs TensorFlow, and training must not load it.
        command = [sys.executable, "-m", "llama_jax", "prepare", args.experiment, *sets]
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            return status
    from etils import epath

    from llama_jax.report import NonFiniteLoss
    from llama_jax.train import train as run_training

    try:
        run_training(experiment, epath.Path(workdir), args.accept_changes, args.profile)
    except NonFiniteLoss as e:
        print(f"llama-jax train: {e}", file=sys.stderr)
        return 1
    return 0


def _join(job: str) -> None:
    import jax

    try:
        if job == "auto":
            jax.distributed.initialize()
            return
        address, processes, index = job.split(",")
        jax.distributed.initialize(address, int(processes), int(index))
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"--multihost: got {job!r}, expected no value on a pod that JAX knows, or "
            f"ADDRESS:PORT,PROCESSES,INDEX; {e}"
        ) from e


def show(args: argparse.Namespace) -> int:
    from llama_jax.show import show_experiment

    show_experiment(config.load(args.experiment, args.overrides), Path(args.experiment).stem)
    return 0


def plan(args: argparse.Namespace) -> int:
    from llama_jax.plan.figures import check_name, draw
    from llama_jax.plan.report import lines, table
    from llama_jax.plan.search import plan_all, search, write_experiment

    if not args.search and (args.out or args.jobs):
        raise UserError("--out and --jobs belong to --search")
    if args.figure:
        check_name(args.figure)
    if args.search:
        found = search(
            args.experiment,
            args.overrides,
            args.slices,
            price=args.price,
            max_compiles=args.compiles,
            jobs=args.jobs,
        )
        plans = [p for p, _ in found]
        text = "\n".join([*table(plans), "(estimates, not measurements; the cheapest first)"])
        if args.out:
            write_experiment(args.out, *found[0])
    else:
        plans = plan_all(args.experiment, args.overrides, args.slices, args.price)
        text = "\n\n".join("\n".join(lines(p)) for p in plans)
    print(json.dumps([dataclasses.asdict(p) for p in plans], indent=2) if args.json else text)
    if args.figure:
        draw(plans, args.figure)
    return 0 if all(p.fits for p in plans) else 1


def prepare(args: argparse.Namespace) -> int:
    from llama_jax.data.prepare import prepare as write_store

    data = config.load(args.experiment, args.overrides).data
    with _without_noise():
        write_store(data, args.workers)
    return 0


# What the native code of TensorFlow and SentencePiece says of every healthy run.
NOISE = re.compile(rb"^[IE]0000 |before absl::InitializeLog|normalizer\.cc|PAD_ID=0")


@contextlib.contextmanager
def _without_noise():
    """Passes on what is written to file descriptor 2, but for NOISE."""
    # Or a worker pool would start it later, and it would hold the pipe open beyond our end.
    multiprocessing.resource_tracker.ensure_running()
    terminal = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def forward() -> None:
        with os.fdopen(read_end, "rb") as lines:
            for line in lines:
                if not NOISE.search(line):
                    os.write(terminal, line)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        os.dup2(terminal, 2)  # which closes the pipe, and so ends the thread
        thread.join()
        os.close(terminal)


def tokenizer(args: argparse.Namespace) -> int:
    from llama_jax.data import tokenizer as room

    data = config.load(args.experiment, args.overrides).data
    try:
        room.train(data, args.vocab_size, args.out, round(args.max_mb * 1e6))
    except OSError as e:
        raise UserError(f"--out: cannot write {str(args.out)!r}: {e.strerror or e}") from e
    print(f"wrote {args.out}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from llama_jax.evaluation.report import evaluate_run

    workdir, step, experiment = _open_run(args)
    evaluate_run(workdir, step, experiment)
    return 0


def sample(args: argparse.Namespace) -> int:
    if (args.workdir is None) == (args.source is None):
        raise UserError("expected either WORKDIR or --from SOURCE")
    if args.source is None:
        if args.tokenizer:
            raise UserError("--tokenizer belongs to --from; for a run, --set data.tokenizer=PATH")
        return _sample_run(args)
    from llama_jax.formats.convert import import_model

    with tempfile.TemporaryDirectory() as directory:
        args.workdir = f"{directory}/imported"
        experiment = import_model(args.source, Path(args.workdir), args.tokenizer)
        if not Path(experiment.data.tokenizer).exists():
            raise UserError(f"--from {args.source}: comes without a tokenizer; give --tokenizer")
        return _sample_run(args)


def _sample_run(args: argparse.Namespace) -> int:
    import jax

    from llama_jax import checkpoint
    from llama_jax.completion import complete, print_jsonl, print_text
    from llama_jax.data import tokenizer as room
    from llama_jax.decoder import lay_out, mesh_for
    from llama_jax.evaluation.int8 import held_out_rows, perplexity
    from llama_jax.formats.vocabulary import check_size
    from llama_jax.sample import Sampling
    from llama_jax.sharding import make_mesh

    workdir, step, experiment = _open_run(args)
    vocabulary = room.load(experiment.data.tokenizer)
    check_size(vocabulary.vocab_size(), experiment.model.vocab_size, experiment.data.tokenizer)
    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    mesh, devices = mesh_for(experiment.model, jax.device_count()), jax.devices()
    if any(text.startswith("mesh.") for text in args.overrides):
        mesh = experiment.mesh
    else:
        devices = devices[: mesh.fsdp * mesh.tensor]
    with jax.set_mesh(make_mesh(mesh, devices)):
        model = checkpoint.restore_model(workdir, step, experiment)
        seen = experiment.data.seq_len
        longest = max(map(len, vocabulary.encode(args.prompt))) + 1 + args.max_tokens
        if longest > seen:
            text = f"up to {longest:,} tokens a text; this model learned from {seen:,}"
            print(f"llama-jax sample: {text}", file=sys.stderr)
        decoder = lay_out(model)
        if args.int8:
            rows = held_out_rows(vocabulary)
            before = perplexity(decoder, rows)
            del decoder
            decoder = lay_out(model, int8=True)
            after = perplexity(decoder, rows)
            print(
                f"int8: perplexity {before:.3f} -> {after:.3f} ({after / before - 1:+.2%}) on "
                f"{rows.size:,} tokens of the package's held-out text",
                file=sys.stderr,
            )
        del model
        printer = print_jsonl if args.format == "jsonl" else print_text
        printer(complete(decoder, vocabulary, args.prompt, args.max_tokens, sampling, args.stop))
    return 0


def export(args: argparse.Namespace) -> int:
    from llama_jax.formats import convert, native

    shard_bytes = None if args.shard_size is None else round(args.shard_size * 1e9)
    options = {}
    for flag, option, value in (
        ("--shard-size", "shard_bytes", shard_bytes),
        ("--shards", "shards", args.shards),
    ):
        if value is not None:
            convert.check_option(args.to, option, flag)
            options[option] = value
    if convert.format_of(Path(args.source)) in (None, "native"):
        if args.tokenizer:
            raise UserError("--tokenizer belongs to SOURCE; for a run, --set data.tokenizer=PATH")
        args.workdir = args.source
        source = native.read_step(*_open_run(args))
    else:
        if args.overrides:
            raise UserError("--set belongs to WORKDIR; got a model of another framework")
        source = convert.open_source(Path(args.source), args.tokenizer)
    try:
        verify = not args.no_verify
        manifest = convert.convert(source, args.to, args.out, args.type, options, verify)
    except convert.WrongExport as e:
        print(f"llama-jax export: {e}", file=sys.stderr)
        return 1
    print("\n".join(convert.summary(args.out, manifest)))
    return 0


def import_(args: argparse.Namespace) -> int:
    from llama_jax.formats.convert import import_model

    experiment = import_model(args.source, args.out, args.tokenizer)
    if Path(experiment.data.tokenizer).exists():
        print(f"wrote {args.out}; llama-jax sample {args.out} --prompt TEXT")
        return 0
    print(f"wrote {args.out}")
    print(
        "no tokenizer came with it, and without one it cannot be sampled: put the model's "
        f"tokenizer.model at {experiment.data.tokenizer}, or import again with --tokenizer",
        file=sys.stderr,
    )
    return 0


def plot(args: argparse.Namespace) -> int:
    from etils import epath

    from llama_jax.figures import plot_losses

    print(plot_losses(epath.Path(args.workdir)))
    return 0


def sweep(args: argparse.Namespace) -> int:
    from etils import epath

    from llama_jax.plan.slices import parse
    from llama_jax.scaling import board
    from llama_jax.scaling import sweep as room

    if args.slice is not None and not args.dry_run or args.price is not None and not args.slice:
        raise UserError("--slice belongs to --dry-run, and --price to --slice")
    for option, value in (
        ("--retry", args.retry or None),
        ("--shard", args.shard),
        ("--expiry", args.expiry),
    ):
        if args.dry_run and value is not None:
            raise UserError(f"{option} does nothing with --dry-run, which trains nothing")
    workdir = epath.Path(args.workdir or f"runs/{Path(args.file).stem}")
    runs = room.load(args.file, args.overrides, workdir)
    try:
        if args.dry_run:
            workdir.exists()
        else:
            workdir.mkdir(parents=True, exist_ok=True)
    except Exception as e:  # an OSError, or whatever the bucket's library has
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        use = "read" if args.dry_run else "write to"
        raise UserError(f"--workdir: cannot {use} {str(workdir)!r}: {reason}") from e
    if args.dry_run:
        board.print_plan(runs, parse(args.slice) if args.slice else None, args.price)
        return 0
    if args.retry:
        room.retry(runs)
    shown = board.Board(runs)
    try:
        room.work(runs, workdir, args.shard or (0, 1), args.expiry or EXPIRY, shown.update)
    finally:
        shown.close()
    failed = [f"{r.name}: {room.state(r).note}" for r in runs if room.state(r).status == "failed"]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"wrote {workdir}/results.csv")
    return 1 if failed else 0


def fit(args: argparse.Namespace) -> int:
    import jax

    from llama_jax.scaling import points
    from llama_jax.scaling.figures import draw_fit
    from llama_jax.scaling.fit import fit as fit_points
    from llama_jax.scaling.fit import to_json
    from llama_jax.scaling.report import as_json, print_fit

    jax.config.update("jax_platforms", "cpu")  # float64, which a TPU has not
    columns = points.Columns(args.n, args.d, args.flops, args.loss, args.run_column)
    data = points.read(args.table, columns, args.min_tokens_per_param)
    found = fit_points(data, str(args.table), args.bootstraps, args.seed)
    out = args.out or Path("runs") / args.table.stem
    laws = as_json(to_json(found))
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_fit(found, out)
        partial = out / "laws.json.partial"
        partial.write_text(laws)
        partial.rename(out / "laws.json")
    except OSError as e:
        raise UserError(f"--out: cannot write into {str(out)!r}: {e.strerror or e}") from e
    if args.json:
        print(laws)
    else:
        print_fit(found)
        print(f"wrote {out}/laws.json and figures")
    return 0


def budget(args: argparse.Namespace) -> int:
    from llama_jax.scaling import serving
    from llama_jax.scaling.decision import decide, over_demand
    from llama_jax.scaling.fit import read_law
    from llama_jax.scaling.report import as_json, print_decision

    rate = (args.requests_per_day, args.tokens_per_request, args.months)
    if args.inference_tokens is None and None in rate or args.inference_tokens and any(rate):
        raise UserError(
            "the demand: give --inference-tokens, or --requests-per-day with --tokens-per-request "
            "and --months"
        )
    served = args.inference_tokens
    if served is None:
        served = math.prod(rate) * serving.DAYS_PER_MONTH
    given = vars(args)
    names = [field.name for field in dataclasses.fields(serving.Assumptions)]
    assumptions = serving.resolve(
        serving.Assumptions(**{n: given[n] for n in names if given.get(n) is not None})
    )
    targets = ("quality_of", "loss", "train_flops", "total_flops", "total_money", "total_energy")
    target = next((kind, given[kind]) for kind in targets if given[kind] is not None)
    law, samples, ranges = read_law(args.laws)
    found = decide(law, samples, ranges, served, target, assumptions)
    if args.figure:
        from llama_jax.scaling.figures import draw_budget

        draw_budget(found, over_demand(law, samples, found), args.figure)
    if args.json:
        print(as_json(dataclasses.asdict(found)))
    else:
        print_decision(found)
    return 0


def _open_run(args: argparse.Namespace):
    """(workdir, step, experiment) of WORKDIR[@STEP]; the experiment is the checkpoint's own."""
    from etils import epath

    from llama_jax import checkpoint

    name, at, wanted = args.workdir.rpartition("@")
    if not at or not wanted.isdigit():  # a path may have an @ of its own
        name, wanted = args.workdir, ""
    workdir = epath.Path(name)
    steps = checkpoint.steps(workdir)
    if not steps:
        raise UserError(f"workdir: no checkpoint in {checkpoint.directory(workdir)}")
    if wanted and int(wanted) not in steps:
        raise UserError(
            f"workdir: no checkpoint {wanted!r} in {name}; there are {', '.join(map(str, steps))}"
        )
    step = int(wanted) if wanted else steps[-1]
    experiment: Experiment = checkpoint.read_meta(workdir, step).experiment
    for text in args.overrides:
        experiment = config.override(experiment, text)
    config.validate(experiment)
    return workdir, step, experiment
