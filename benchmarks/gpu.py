"""One NVIDIA GPU measured in at most ten minutes: training, decoding, and what `plan` says of both.

    python benchmarks/gpu.py [--parts NAME ...] [--json FILE]

On a machine with a card it needs of requirements-train.txt only these, and jax for CUDA:

    pip install "jax[cuda12]==0.10.2" flax==0.12.8 optax==0.2.8 numpy==2.4.6 rich==15.0.0

A machine without a network wants the same as wheels (`pip download` elsewhere); a newer jax for
CUDA that is there already will do, too. Nothing is read: weights and tokens are random.

    limits     bf16 matrix product and memory bandwidth of the card, beside its data sheet
    attention  cuDNN's kernel against the reference in fp32, outputs and gradients, beside TOLERANCE
    train-*    tokens/s beside the matrix product measured in the same process; MFU of the data
               sheet's peak, step time and peak memory beside what `plan` expects by arithmetic
    decode-*   tokens/s after prompts of 128 tokens, beside the bandwidth measured in the same
               process over the bytes of the matrices and caches that a step must read

Each part runs in a process of its own, within PART_SECONDS; none begins after START_SECONDS, and
the last lines say what was left out. Figures are medians over rounds. The status is 1 if there is
no card, if a part failed or if attention differs by more than TOLERANCE.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gpu_parts import PARTS, TOLERANCE, Row

ROOT = Path(__file__).parents[1]
START_SECONDS = 480
END_SECONDS = 590
PART_SECONDS = 180
UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9, "GiB": 2**30, "ms": 1e-3, "%": 1e-2, "tokens/s": 1.0}


@dataclasses.dataclass
class Answer:
    """What a part's process says of it. Without rows: why."""

    rows: list[Row]
    failure: str = ""
    card: str = ""  # and the version of jax
    no_card: bool = False


def answer(part: str) -> Answer:
    """Run a part in this process."""
    import jax

    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "gpu":
        return Answer([], f"jax {jax.__version__} sees no GPU here, only {kind}", no_card=True)
    card = f"{kind}, jax {jax.__version__}"
    try:
        return Answer(PARTS[part](part), card=card)
    except Exception as e:  # whatever it is, the other parts go on
        traceback.print_exc()
        return Answer([], f"{type(e).__name__}: {str(e).splitlines()[0][:300]}", card)


def ask(part: str, seconds: float) -> Answer:
    """Run a part in a process of its own, for so long at the most."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    command = [sys.executable, __file__, "--answer", part]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Answer([], f"not done after {seconds:.0f} s")
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"rows": [], "failure": f"ended with status {done.returncode}"}
    if found["failure"] and not found.get("no_card"):
        print(done.stderr[-3000:], file=sys.stderr)
    rows = [Row(**row) for row in found.pop("rows")]
    return Answer(rows, **found)


def run_parts(
    names: list[str],
    ask: Callable[[str, float], Answer],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[str, Answer | None]]:
    """Yield each part's name and answer; None for those that there was no time to begin."""
    start = clock()
    for name in names:
        spent = clock() - start
        late = spent > START_SECONDS
        yield name, None if late else ask(name, min(PART_SECONDS, END_SECONDS - spent))


def tabulate(rows: list[Row], card: str) -> Table:
    table = Table(title=f"One {card}" if card else None)
    for column in ("part", "what", "measured", "beside it", "", "ratio"):
        right = column in ("measured", "beside it", "ratio")
        table.add_column(column, justify="right" if right else "left")
    for i, row in enumerate(rows):
        if i and row.part != rows[i - 1].part:
            table.add_section()

        def shown(value: float | None, unit: str = row.unit) -> str:
            return "unknown" if value is None else f"{value / UNITS[unit]:,.4g} {unit}"

        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(
            row.part,
            row.quantity,
            shown(row.measured),
            shown(row.beside),
            row.beside_what,
            ratio,
        )
    return table


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--answer", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        print(json.dumps(dataclasses.asdict(answer(args.answer))))
        return
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    failed, card = False, ""
    for name, found in run_parts(args.parts, ask):
        if found is None:
            left_out[name] = f"not begun: {START_SECONDS} s had passed"
            continue
        if found.no_card:
            sys.exit(found.failure)
        card = found.card or card
        rows += found.rows
        failed |= bool(found.failure)
        if found.failure:
            left_out[name] = found.failure
        print(f"{name}: {found.failure or 'done'}", file=sys.stderr, flush=True)
        if args.json:  # after each part, so that a command that is killed leaves what there is
            table = {"card": card, "rows": [dataclasses.asdict(row) for row in rows]}
            args.json.write_text(json.dumps(table | {"left_out": left_out}, indent=2) + "\n")
    Console(width=140).print(tabulate(rows, card))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    errors = [row.measured for row in rows if row.part == "attention"]
    equal = all(error is not None and error <= TOLERANCE for error in errors)  # NaN is not
    if not equal:
        print(f"attention differs from the reference by more than {TOLERANCE:.0%}")
    sys.exit(failed or not equal)


if __name__ == "__main__":
    main()
