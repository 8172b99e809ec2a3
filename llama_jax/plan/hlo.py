"""The text of a program that XLA scheduled: its instructions, FLOPs and loops.

compiled.as_text() lists a device's operations in the order of their execution. Loops are counted
where they run from a constant to a constant; FLOPs of attention kernels, which the text does not
describe, follow from the shapes of queries and keys.
"""

import dataclasses
import functools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CAUSAL = 0.5  # share of the scores that causal attention needs
DIAGONAL_WASTE = 1.12  # a kernel computes the whole of a block that the diagonal crosses

INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([a-z][\w\-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
CHANNEL = re.compile(r"channel_id=(\d+)")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(slots=True)
class Instruction:
    name: str
    opcode: str
    shapes: list[tuple[str, tuple[int, ...]]]  # (dtype, dims) of each array in the result
    operands: list[str]
    text: str  # from the operands on
    called: str = ""  # the computation that a fusion or call runs

    def find(self, pattern: re.Pattern[str]) -> str:
        """Return the group of a pattern's first match in operands and attributes, "" if none."""
        match = pattern.search(self.text)
        return match[1] if match else ""

    @property
    def num_bytes(self) -> float:
        """Return the bytes of the result."""
        return sum(_bits(dtype) / 8 * math.prod(dims) for dtype, dims in self.shapes)

    @property
    def collective(self) -> str:
        """Return the kind of collective that this is or starts, "" if none."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


@dataclasses.dataclass(slots=True)
class Computation:
    """A named list of instructions. matmul_flops and collectives include those of the computations
    that it calls, but not of loops, which fusions cannot contain."""

    instructions: dict[str, Instruction]  # in the order of execution
    root: Instruction
    matmul_flops: int
    collectives: list[tuple["Computation", Instruction]]  # each with the computation it stands in

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def has_call(self, target: str) -> bool:
        """Return whether it has a custom call of that target."""
        return any(i.find(TARGET) == target for i in self.instructions.values())


@dataclasses.dataclass(slots=True)
class Module:
    """A scheduled program as one device executes it."""

    computations: dict[str, Computation]
    entry: Computation
    num_partitions: int
    chains: set[str]  # channels of the collectives in continuation fusions
    splits_backward: bool  # attention has one kernel for dq and another for dk and dv


def parse(hlo: str) -> Module:
    """Read the text of a scheduled module, in which callees stand before their callers."""
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    name = entry = ""
    last = root = None
    for line in re.sub(r"/\*index=\d+\*/", "", hlo).split("\n"):
        if match := INSTRUCTION.match(line):
            is_root, label, result, opcode, text = match.groups()
            shapes = [(dtype, integers(dims)) for dtype, dims in SHAPE.findall(result)]
            operands = re.findall(r"%([\w.\-]+)", text[: text.find(")")])
            last = instructions[label] = Instruction(label, opcode, shapes, operands, text)
            root = last if is_root else root
        elif match := COMPUTATION.match(line):
            name, instructions, last, root = match[2], {}, None, None
            entry = name if match[1] else entry
        elif root and re.match(r"\}(,|$)", line):
            computations[name] = _computation(instructions, root, computations)
            last = root = None
        elif last:
            last.text += line  # the metadata of a kernel runs over several lines
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    starts = [c for c in computations.values() if c.has_call("AsyncCollectiveStart")]
    return Module(
        computations,
        computations[entry],
        int(partitions[1]) if partitions else 1,
        {collective.find(CHANNEL) for c in starts for _, collective in c.collectives},
        re.search(r"%\w*_dq[\w.]* = [^=]*custom-call", hlo) is not None,
    )


def _computation(
    instructions: dict[str, Instruction], root: Instruction, before: dict[str, Computation]
) -> Computation:
    computation = Computation(instructions, root, 0, [])
    for instruction in instructions.values():
        if instruction.opcode in ("convolution", "dot"):
            computation.matmul_flops += matmul_flops(instruction, computation)
        elif instruction.collective:
            computation.collectives.append((computation, instruction))
        elif instruction.opcode in ("fusion", "call", "call-start"):
            instruction.called = instruction.find(CALLED)
            computation.matmul_flops += before[instruction.called].matmul_flops
            computation.collectives += before[instruction.called].collectives
    return computation


def integers(text: str) -> tuple[int, ...]:
    """Return "4,2" as (4, 2), "" as ()."""
    return tuple(map(int, text.split(","))) if text else ()


def _bits(dtype: str) -> int:
    """Return the bits of one element of bf16, f8e4m3fn, s4 or pred; a token has none."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")


# Loops

NUMBER = re.compile(r"^(-?\d+)\)")  # of a constant or a parameter
INDEX = re.compile(r"index=(\d+)")
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
BODY = re.compile(r"body=%?([\w.\-]+)")
FORWARDING = ("bitcast", "convert", "copy", "copy-start", "copy-done")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the body runs; None unless the loop counts by a constant to a constant."""
    condition = module.computations[loop.find(CONDITION)]
    body = module.computations[loop.find(BODY)]
    compare, operands = _unfused(module, condition, condition.root)
    if "direction=LT" not in compare.text or operands[1].opcode != "constant":
        return None
    index = int(operands[0].find(INDEX))
    add, terms = _unfused(module, body, _source(body, body.root.operands[index]))
    steps = [int(term.find(NUMBER)) for term in terms if term.opcode == "constant"]
    if add.opcode != "add" or not steps:
        return None
    start = _source(computation, computation[loop.operands[0]].operands[index])
    first = int(start.find(NUMBER)) if start.opcode == "constant" else 0
    return math.ceil((int(operands[1].find(NUMBER)) - first) / steps[0])


def _unfused(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Instruction, list[Instruction]]:
    """Return a scalar operation and its operands, whether it stands by itself or in a fusion."""
    if not instruction.called:
        return instruction, [computation[operand] for operand in instruction.operands]
    inner = module.computations[instruction.called]
    operands = [inner[operand] for operand in inner.root.operands]
    return inner.root, [
        computation[instruction.operands[int(operand.find(NUMBER))]]
        if operand.opcode == "parameter"
        else operand
        for operand in operands
    ]


def _source(computation: Computation, name: str) -> Instruction:
    """Return the instruction that a value is a copy of."""
    instruction = computation[name]
    while instruction.opcode in FORWARDING:
        instruction = computation[instruction.operands[0]]
    return instruction


# FLOPs

LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
WINDOW = re.compile(r"window=\{([^}]*)\}")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
KERNEL_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}\}")


def matmul_flops(instruction: Instruction, computation: Computation) -> int:
    """Return the FLOPs of a dot or convolution: two for each product of two elements. The padding
    and the gaps of a dilated operand are not elements. libtpu writes dots as convolutions, and a
    batch dimension of a dot as a spatial one, whose window meets one element at each position."""
    out = instruction.shapes[0][1]
    lhs, rhs = (computation[operand].shapes[0][1] for operand in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = integers(instruction.find(CONTRACTED))
        return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)
    match = LABELS.search(instruction.text)
    assert match, instruction.name
    lhs, rhs, out = (
        dict(zip(labels, dims, strict=True))
        for labels, dims in zip(match.groups(), (lhs, rhs, out), strict=True)
    )
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.find(WINDOW)))

    def of(field: str, spatial: int, otherwise: int) -> int:
        values = window.get(field, "").split("x")
        return int(values[spatial].split("_")[0]) if values[0] else otherwise

    products = rhs["i"] * out["f"] * out["b"]  # of these, i and b are of one group of features
    for i in range(len(out) - 2):
        sizes = (dims[str(i)] for dims in (lhs, rhs, out))
        dilations = of("lhs_dilate", i, 1), of("rhs_dilate", i, 1)
        products *= _meetings(*sizes, of("stride", i, 1), of("pad", i, 0), *dilations)
    return 2 * products


@functools.lru_cache(maxsize=1024)
def _meetings(
    size: int, window: int, out: int, stride: int, pad: int, dilation: int, window_dilation: int
) -> int:
    """Return the number of pairs of a position in the output and one in the window that meet an
    element."""
    pairs = 0
    for w in range(window):
        offset = w * window_dilation - pad  # in the dilated operand, for output 0
        low = max(0, -(offset // stride))
        high = min(out - 1, ((size - 1) * dilation - offset) // stride)
        if dilation == 1:
            pairs += max(0, high - low + 1)
        else:
            pairs += sum((offset + o * stride) % dilation == 0 for o in range(low, high + 1))
    return pairs


def attention_flops(kernel: Instruction, module: Module) -> float | None:
    """Return the FLOPs of a splash or flash kernel; None for other kernels.

    They follow from its name and its first two operands of three dimensions or more, queries
    [..., T, K] and keys [..., C, K].
    """
    arrays = [
        integers(dims)
        for dtype, dims in SHAPE.findall(kernel.find(KERNEL_OPERANDS))
        if dtype in ("bf16", "f32") and dims.count(",") >= 2
    ]
    if not re.search("splash|flash", kernel.name) or len(arrays) < 2:
        return None
    queries, keys = arrays[:2]
    if "_dkv" in kernel.name:
        matmuls = 4 if module.splits_backward else 5  # scores, their gradient, dv, dk; or dq too
    elif "_dq" in kernel.name:
        matmuls = 3  # scores, their gradient, dq
    else:
        matmuls = 2  # scores, weighted sum of the values
    return matmuls * 2 * math.prod(queries) * keys[-2] * CAUSAL * DIAGONAL_WASTE
