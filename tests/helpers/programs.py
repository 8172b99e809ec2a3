"""Programs in XLA's text, made by hand, and their estimate on v5e."""

from llama_jax.hardware import CHIPS
from llama_jax.plan.estimate import (
    Estimate,
    estimate,
)

V5E = CHIPS["v5e"]


# Programs by hand

COMPUTE = 50e-6  # seconds of the operations that have a cost


COST = f'backend_config={{"window_config":{{"estimated_cycles":"{COMPUTE * V5E.clock:.0f}"}}}}'


HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"


MESH = {"replica": 1, "fsdp": 4, "tensor": 4}


def entry(*lines: str, result: str = "f32[]") -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"ENTRY %main (a: bf16[512,512]) -> {result} {{\n{body}}}\n"


def of_v5e(hlo: str, mesh: dict[str, int] = MESH) -> Estimate:
    return estimate(HEADER + hlo, V5E, mesh, (4, 4))


def fusion(name: str, *lines: str) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"%{name} (p: bf16[512,512]) -> bf16[2048,512] {{\n{body}}}\n\n"


DOT = "bf16[512,512]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
