"""Golden plans, of the four sizes on each of their slices: rewrites experiments/results/plans.json.

    python tests/golden_plans.py [--only llama_7b@v5e:8x8 ...]

A program that was compiled before and has not changed takes seconds, another one to three minutes.
A change that costs memory, FLOPs or communication shows in the diff of the file.
"""

import argparse
import json
from pathlib import Path

from llama_jax.hardware import GIB
from llama_jax.loading import execute
from llama_jax.plan.plan import Plan
from llama_jax.plan.slices import plan_all
from llama_jax.plan.text import brief

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GOLDEN = EXPERIMENTS / "results/plans.json"


def figures(plan: Plan) -> dict:
    """Return what is kept of a plan. Bytes and FLOPs do not depend on the machine that compiles."""
    assert plan.spare_share is not None and plan.hbm_peak_bytes is not None
    assert plan.executed_flops is not None and plan.step_seconds is not None
    assert plan.mfu is not None
    return {
        "fits": plan.fits,
        "spare_share": round(plan.spare_share, 3),
        "hbm_peak_gib": round(plan.hbm_peak_bytes / GIB, 2),
        "host_gib": round(plan.host_bytes / GIB, 2),
        "executed_to_model_flops": round(plan.executed_flops / plan.model_flops, 3),
        "step_seconds_estimate": round(plan.step_seconds, 2),
        "share_of_step": {
            kind: round(seconds / plan.step_seconds, 3) for kind, seconds in plan.breakdown.items()
        },
        "mfu_estimate": [round(mfu, 3) for mfu in plan.mfu],
        "collectives_gib": {
            f"{c.kind} over {c.axis}": round(c.bytes / GIB, 1) for c in plan.collectives
        },
        "compiled_by": plan.versions,
    }


def placements() -> list[str]:
    """Return every EXPERIMENT@SLICE that an experiment file names in its SLICES."""
    named = []
    for path in sorted(EXPERIMENTS.glob("llama_*.py")):
        named += [f"{path.stem}@{name}" for name in execute(str(path)).SLICES]
    return named


def plan(placement: str) -> Plan:
    experiment, target = placement.split("@")
    return plan_all(str(EXPERIMENTS / f"{experiment}.py"), [], [target], None)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=placements(),
        default=placements(),
        metavar="EXPERIMENT@SLICE",
        help=f"by default all: {', '.join(placements())}",
    )
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for placement in parser.parse_args().only:
        found = plan(placement)
        print(f"{placement}: {brief(found)}", flush=True)
        golden[placement] = figures(found)
        ordered = {name: golden[name] for name in placements() if name in golden}
        GOLDEN.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    main()
