"""The time of one train step, read from the program that the TPU compiler scheduled.

compiled.as_text() lists a device's operations in the order of their execution, each with the
cycles that libtpu's own cost model expects. This adds them up. What that assumes:

* An operation takes its `estimated_cycles`; one without (a scalar, a DMA) takes no time. DMAs
  between memories (copy-start, slice-start) are thus taken to be hidden.
* A loop takes (limit - start) / step times its body; windowed einsums count in steps of 2.
* An attention kernel, whose cost libtpu does not know, reaches Chip.attention_efficiency of the
  peak on its causal half and on the waste of its diagonal blocks.
* A collective is a ring over the torus axes that its group spans: the bytes that a device sends
  over the bidirectional bandwidth of these axes, half of it where one lacks its wraparound. A
  group that is not made of whole axes is taken to be a block, which has a ring of its own. An
  all-to-all takes a quarter of an all-gather. A permute has one of the two directions to itself.
* Collectives along one mesh axis share its links: they queue, but for a synchronous one, which
  goes first while the others pause. Between its start and its done a collective runs beside the
  computation; what is left of it at the done, and a synchronous one, are exposed.
* Continuation fusions are one collective: its channel appears in an async-collective-start, in
  the fusions that carry it on and in an async-collective-done.
* Between slices every device has its chip's share of the data-centre network, and a reduction is
  a ring over the slices. Latency, stragglers and the host's work are left out.

Mesh axes are named from device ids, which jax.jit numbers in the order of the mesh. The program of
several slices is that of one of them; the slices lie along the first axes of the mesh.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict

from llama_jax.hardware import Chip

# Fitted on six published MFU of MaxText (22B on v4-128, 16B and 32B on v5e-256, 32B and 64B on
# v5p-128, 70B on v5p-1024; attention counted causally), whose programs, by MaxText 0.2.5 and
# libtpu 0.0.46, were estimated with this module. None is on v6e or tpu7x. The spread is the factor
# by which the worst of the six misses the fit to the other five.
A_SCALE, A_SPREAD = 1.14, 1.34  # published / (model FLOPs / step_seconds / peak)
B_SCALE, B_SPREAD = 0.75, 1.14  # published / (model FLOPs / executed FLOPs)
TYPICAL_EXPOSED = 0.08  # share of exposed communication that B_SCALE is taken to contain

CAUSAL = 0.5  # share of the scores that causal attention needs
DIAGONAL_WASTE = 1.12  # a kernel computes the whole of a block that the diagonal crosses

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Custom calls that name or reserve memory, or mark a collective.
FREE_CALLS = (
    "AllocateBuffer AssumeGatherIndicesInBound AsyncCollectiveDone AsyncCollectiveStart "
    "ConcatBitcast GatherScatterIndicesBitpacked PrepareAsyncCallDone PrepareAsyncCallStart SliceId"
).split()
KINDS = ("matmul", "attention", "other compute", "copies", "exposed communication")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one part of the mesh, of one device and step."""

    kind: str  # of COLLECTIVES, with " over DCN" if between slices
    axis: str  # of the mesh: "fsdp", "replica+fsdp"
    bytes: float  # that the device sends
    count: int
    seconds: float  # on the links
    exposed_seconds: float  # of these, those in which the device only waits


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one device and one step."""

    step_seconds: float
    breakdown: dict[str, float]  # seconds of each of KINDS, together step_seconds
    matmul_flops: float  # as executed: recomputation counts
    attention_flops: float  # likewise, of attention kernels
    collectives: tuple[Collective, ...]  # the most exposed first
    unknown: tuple[str, ...]  # kernels and custom calls not counted, loops counted once

    @property
    def executed_flops(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def exposed_share(self) -> float:
        return self.breakdown["exposed communication"] / self.step_seconds


def estimate(
    hlo: str, chip: Chip, mesh_axes: dict[str, int], topology_shape: tuple[int, ...]
) -> Estimate:
    """The time, FLOPs and communication of a program.

    hlo: compiled.as_text().
    mesh_axes: name -> size, in the order of the mesh, over all slices.
    topology_shape: chips along each dimension of one slice.
    """
    program = parse(hlo)
    walk = _Walk(program, _Links(chip, mesh_axes, topology_shape, program.num_partitions))
    seconds = walk.run(program.entry, 1)
    collectives = [
        Collective(kind, axis, sent, int(count), on_links, exposed)
        for (kind, axis), (sent, count, on_links, exposed) in walk.collectives.items()
        if sent  # a group of one sends nothing
    ]
    return Estimate(
        seconds,
        walk.seconds,
        walk.matmul_flops,
        walk.attention_flops,
        tuple(sorted(collectives, key=lambda c: (-c.exposed_seconds, -c.seconds))),
        tuple(walk.unknown),
    )


def expected_mfu(
    estimate: Estimate, model_flops_per_device: float, chip: Chip
) -> tuple[float, float]:
    """The interval (low, high) between two estimates of MFU, neither of them a measurement.

    A: model FLOPs / step_seconds / peak, as the compiler's cost model has it, not scaled.
    B: model FLOPs / executed FLOPs, scaled to published runs, less the exposed communication that
    goes beyond theirs.
    """
    a = model_flops_per_device / estimate.step_seconds / chip.peak_flops
    excess = max(0.0, estimate.exposed_share - TYPICAL_EXPOSED)
    b = B_SCALE * model_flops_per_device / estimate.executed_flops * (1 - excess)
    return min(a, b), max(a, b)


# The text

INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([a-z][\w\-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
CHANNEL = re.compile(r"channel_id=(\d+)")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')  # of slices
TRANSFER_TYPE = re.compile(r'_xla_megascale_transfer_type="([^"]*)"')
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
        """The group of a pattern's first match in operands and attributes, "" if none."""
        match = pattern.search(self.text)
        return match[1] if match else ""

    @property
    def num_bytes(self) -> float:
        return sum(_bits(dtype) / 8 * math.prod(dims) for dtype, dims in self.shapes)

    @property
    def collective(self) -> str:
        """The kind of collective that this is or starts, "" if none."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


@dataclasses.dataclass(slots=True)
class Computation:
    """matmul_flops and collectives are with those of the computations that it calls, but not of
    loops, which fusions cannot contain."""

    instructions: dict[str, Instruction]  # in the order of execution
    root: Instruction
    matmul_flops: int
    collectives: list[tuple["Computation", Instruction]]  # each with where it stands

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def has_call(self, target: str) -> bool:
        return any(i.find(TARGET) == target for i in self.instructions.values())


@dataclasses.dataclass(slots=True)
class Program:
    computations: dict[str, Computation]
    entry: Computation
    num_partitions: int
    chains: set[str]  # channels of the collectives in continuation fusions
    splits_backward: bool  # attention has one kernel for dq and another for dk and dv


def parse(hlo: str) -> Program:
    """Reads the text of a scheduled module, in which callees stand before their callers."""
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    name = entry = ""
    last = root = None
    for line in re.sub(r"/\*index=\d+\*/", "", hlo).split("\n"):
        if match := INSTRUCTION.match(line):
            is_root, label, result, opcode, text = match.groups()
            shapes = [(dtype, _integers(dims)) for dtype, dims in SHAPE.findall(result)]
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
    return Program(
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
            computation.matmul_flops += _matmul_flops(instruction, computation)
        elif instruction.collective:
            computation.collectives.append((computation, instruction))
        elif instruction.opcode in ("fusion", "call", "call-start"):
            instruction.called = instruction.find(CALLED)
            computation.matmul_flops += before[instruction.called].matmul_flops
            computation.collectives += before[instruction.called].collectives
    return computation


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _bits(dtype: str) -> int:
    """Of one element: bf16, f8e4m3fn, s4, pred; a token has none."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")


# Loops

NUMBER = re.compile(r"^(-?\d+)\)")  # of a constant or a parameter
INDEX = re.compile(r"index=(\d+)")
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
BODY = re.compile(r"body=%?([\w.\-]+)")
FORWARDING = ("bitcast", "convert", "copy", "copy-start", "copy-done")


def _trips(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body runs, if the loop counts up to a constant by a constant."""
    condition = program.computations[loop.find(CONDITION)]
    body = program.computations[loop.find(BODY)]
    compare, operands = _unfused(program, condition, condition.root)
    if "direction=LT" not in compare.text or operands[1].opcode != "constant":
        return None
    index = int(operands[0].find(INDEX))
    add, terms = _unfused(program, body, _source(body, body.root.operands[index]))
    steps = [int(term.find(NUMBER)) for term in terms if term.opcode == "constant"]
    if add.opcode != "add" or not steps:
        return None
    start = _source(computation, computation[loop.operands[0]].operands[index])
    first = int(start.find(NUMBER)) if start.opcode == "constant" else 0
    return math.ceil((int(operands[1].find(NUMBER)) - first) / steps[0])


def _unfused(
    program: Program, computation: Computation, instruction: Instruction
) -> tuple[Instruction, list[Instruction]]:
    """A scalar operation and what its operands are, be it by itself or in a fusion."""
    if not instruction.called:
        return instruction, [computation[operand] for operand in instruction.operands]
    inner = program.computations[instruction.called]
    operands = [inner[operand] for operand in inner.root.operands]
    return inner.root, [
        computation[instruction.operands[int(operand.find(NUMBER))]]
        if operand.opcode == "parameter"
        else operand
        for operand in operands
    ]


def _source(computation: Computation, name: str) -> Instruction:
    """What a value is a copy of."""
    instruction = computation[name]
    while instruction.opcode in FORWARDING:
        instruction = computation[instruction.operands[0]]
    return instruction


# FLOPs

LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
WINDOW = re.compile(r"window=\{([^}]*)\}")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
KERNEL_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}\}")


def _matmul_flops(instruction: Instruction, computation: Computation) -> int:
    """Twice the products of two numbers that are there: padding and the gaps of a dilated operand
    are not. libtpu writes dots as convolutions, and a batch dimension of a dot as a spatial one,
    whose window meets one element at each position."""
    out = instruction.shapes[0][1]
    lhs, rhs = (computation[operand].shapes[0][1] for operand in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = _integers(instruction.find(CONTRACTED))
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
    """Pairs of a position in the output and one in the window that meet an element."""
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


def _attention_flops(kernel: Instruction, program: Program) -> float | None:
    """Of a splash or flash kernel, by its name and its first two operands of three dimensions or
    more, queries [..., T, K] and keys [..., C, K]; None for other kernels."""
    arrays = [
        _integers(dims)
        for dtype, dims in SHAPE.findall(kernel.find(KERNEL_OPERANDS))
        if dtype in ("bf16", "f32") and dims.count(",") >= 2
    ]
    if not re.search("splash|flash", kernel.name) or len(arrays) < 2:
        return None
    queries, keys = arrays[:2]
    if "_dkv" in kernel.name:
        matmuls = 4 if program.splits_backward else 5  # scores, their gradient, dv, dk; or dq too
    elif "_dq" in kernel.name:
        matmuls = 3  # scores, their gradient, dq
    else:
        matmuls = 2  # scores, weighted sum of the values
    return matmuls * 2 * math.prod(queries) * keys[-2] * CAUSAL * DIAGONAL_WASTE


# Communication

WAYS = "up", "down"
GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=(.*?)(?:, (?!device_ids)\w+=|$)")
MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? *\{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class _Transfer:
    kind: str
    axis: str
    bytes: float  # that one device sends
    seconds: float
    links: tuple[str, ...]  # that it occupies: a way of mesh axes within a slice, or DCN


class _Links:
    """How the devices of a program are connected, and how they lie in the mesh."""

    def __init__(
        self, chip: Chip, mesh_axes: dict[str, int], shape: tuple[int, ...], num_partitions: int
    ):
        self.chip = chip
        rings = zip(shape, chip.wraparound(shape), strict=True)
        self.dimensions = [(size, closed) for size, closed in rings if size > 1]
        # A program for several slices is that of one: what part of the mesh lies within it?
        self.num_slices = slices = math.prod(mesh_axes.values()) // num_partitions
        self.axes, self.slice_axes = {}, []
        for axis, size in mesh_axes.items():
            across = math.gcd(size, slices)
            slices //= across
            self.axes[axis] = size // across
            if across > 1:
                self.slice_axes.append(axis)

    def transfer(self, collective: Instruction, computation: Computation) -> _Transfer:
        """A collective between the devices of a slice."""
        kind = collective.collective
        size, axis = _span(collective.find(GROUPS), tuple(self.axes.items()))
        operands = [computation[name].num_bytes for name in collective.operands]
        if kind == "collective-permute":
            seconds = operands[0] / (self.chip.link_bandwidth / 2)
            way = _way(collective.find(GROUPS))
            links = tuple(f"{name} {way}" for name in axis.split("+"))
            return _Transfer(kind, axis, operands[0], seconds, links)
        links = tuple(f"{name} {way}" for name in axis.split("+") for way in WAYS)
        if kind == "all-reduce":  # may send fewer bits than its operands have
            operands = [collective.num_bytes]
        if kind == "all-reduce" and any(
            user.opcode == "dynamic-slice" and collective.name in user.operands
            for user in computation.instructions.values()
        ):
            kind = "reduce-scatter"  # libtpu's fusion of the two
        sent = _sent(kind, size, sum(operands))
        rate = self._bandwidth(size) * (4 if kind == "all-to-all" else 1)
        return _Transfer(kind, axis, sent, sent / rate, links)

    def transfer_between_slices(self, send: Instruction, computation: Computation) -> _Transfer:
        """A send to the hosts, which the runtime completes to a collective."""
        kind = send.find(TRANSFER_TYPE).lower().replace("_", "-")
        sent = _sent(kind, self.num_slices, computation[send.operands[0]].num_bytes)
        seconds = sent / self.chip.network_bandwidth
        return _Transfer(f"{kind} over DCN", "+".join(self.slice_axes), sent, seconds, ("DCN",))

    def _bandwidth(self, group_size: int) -> float:
        """Bytes/s that one device can send in a ring of so many."""
        chips = max(1, group_size // self.chip.devices_per_chip)
        for number in range(len(self.dimensions), 0, -1):
            for whole in itertools.combinations(self.dimensions, number):
                if math.prod(size for size, _ in whole) == chips:
                    closed = all(closed for _, closed in whole)
                    return self.chip.link_bandwidth * number * (1 if closed else 0.5)
        all_chips = max(2, math.prod(size for size, _ in self.dimensions))
        number = round(len(self.dimensions) * math.log(chips) / math.log(all_chips))
        return self.chip.link_bandwidth * max(1, number)


def _sent(kind: str, group_size: int, operand_bytes: float) -> float:
    """Bytes that each device of a ring sends."""
    others = group_size - 1
    if kind == "all-gather":
        return others * operand_bytes
    if kind == "all-reduce":
        return 2 * others / group_size * operand_bytes
    if kind in ("reduce-scatter", "all-to-all"):
        return others / group_size * operand_bytes
    return operand_bytes


@functools.lru_cache(maxsize=1024)
def _span(groups: str, axes: tuple[tuple[str, int], ...]) -> tuple[int, str]:
    """How many devices a group has, and the mesh axes along which they lie."""
    stride = num_devices = math.prod(size for _, size in axes)
    members = _members(groups, num_devices)
    spanned = []
    for axis, size in axes:
        stride //= size
        if any(len({device // stride % size for device in group}) > 1 for group in members):
            spanned.append(axis)
    return len(members[0]), "+".join(spanned)


def _way(pairs: str) -> str:
    """Of the two ways around a ring, the one that a permutation of its devices goes: two that are
    each other's inverse go different ways, and do not share a link."""
    listed = re.findall(r"\{(\d+),(\d+)\}", pairs)
    target = {int(here): int(there) for here, there in listed}
    source = {there: here for here, there in target.items()}
    first = min(target)
    return WAYS[target[first] > source.get(first, math.inf)]


def _members(groups: str, num_devices: int) -> list[tuple[int, ...]]:
    """Devices of the first group, or of all groups where they are listed, in the spellings:

    mesh['a'=2,'b'=4] {'b'}, of b's minor half {'b':(2)2}, of other devices than 0 to 7 in order
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}; [2,4]<=[4,2]T(1,0); {{0,1},{2,3}}; {}, all.
    """
    if match := MESH.match(groups):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        strides = dict(zip(sizes, _strides(tuple(sizes.values())), strict=True))
        places = [0]
        for axis, major, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3]):
            size = int(part or sizes[axis])
            stride = strides[axis] * (sizes[axis] // (int(major) * size) if part else 1)
            places = [place + i * stride for place in places for i in range(size)]
        devices = _iota(match[2]) if match[2] else range(num_devices)
        return [tuple(devices[place] for place in places)]
    if match := re.match(r"\[\d+,(\d+)\]<=(.*)", groups):
        return [tuple(_iota(match[2])[: int(match[1])])]
    listed = re.findall(r"\{([\d,]+)\}", groups)
    return [_integers(group) for group in listed] or [tuple(range(num_devices))]


def _iota(text: str) -> list[int]:
    """[4,2]T(1,0): the numbers from 0 to 7 as an array of 4x2, transposed, read in order."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match, text
    dims = _integers(match[1])
    strides = _strides(dims)
    order = _integers(match[2] or "") or range(len(dims))
    ranges = (range(0, dims[i] * strides[i], strides[i]) for i in order)
    return [sum(place) for place in itertools.product(*ranges)]


def _strides(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(dims[i + 1 :]) for i in range(len(dims)))


# Time


@dataclasses.dataclass
class _InFlight:
    transfer: _Transfer
    start: float
    end: float
    before: "_InFlight | None"  # that it queued behind


@dataclasses.dataclass
class _Timeline:
    """One pass through a computation: what runs now, and what is under way on the links."""

    walk: "_Walk"
    times: int  # that this pass is made
    now: float = 0.0
    last: dict[str, _InFlight] = dataclasses.field(default_factory=dict)  # of each link
    pending: dict[str, _InFlight] = dataclasses.field(default_factory=dict)

    def spend(self, kind: str, seconds: float) -> None:
        self.now += seconds
        self.walk.seconds[kind] += seconds * self.times

    def begin(self, key: str, transfer: _Transfer) -> None:
        queue = [self.last[link] for link in transfer.links if link in self.last]
        before = max(queue, key=lambda flight: flight.end, default=None)
        start = max(self.now, before.end) if before else self.now
        flight = _InFlight(transfer, start, start + transfer.seconds, before)
        self.pending[key] = flight
        self.last |= dict.fromkeys(transfer.links, flight)
        self._add(transfer, transfer.bytes, 1, transfer.seconds, 0.0)

    def wait(self, key: str) -> None:
        """For a transfer, which is also to wait for those that it queued behind."""
        flight = self.pending.pop(key, None)
        if not flight or flight.end <= self.now:
            return
        since, end = self.now, flight.end
        while flight and flight.end > since:
            self._add(flight.transfer, 0.0, 0, 0.0, flight.end - max(flight.start, since))
            flight = flight.before
        self.spend("exposed communication", end - since)

    def block(self, transfer: _Transfer) -> None:
        """A synchronous transfer. Those under way on the same links pause."""
        for flight in self.pending.values():
            if flight.end > self.now and set(flight.transfer.links) & set(transfer.links):
                flight.start += transfer.seconds if flight.start > self.now else 0.0
                flight.end += transfer.seconds
        self._add(transfer, transfer.bytes, 1, transfer.seconds, transfer.seconds)
        self.spend("exposed communication", transfer.seconds)

    def _add(self, transfer: _Transfer, *values: float) -> None:
        total = self.walk.collectives[transfer.kind, transfer.axis]
        for i, value in enumerate(values):
            total[i] += value * self.times


@dataclasses.dataclass
class _Walk:
    """Through a program in the order of its execution, adding up what it meets."""

    program: Program
    links: _Links
    matmul_flops: float = 0
    attention_flops: float = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    # (kind, axis) -> bytes, count, seconds, exposed seconds
    collectives: defaultdict[tuple[str, str], list[float]] = dataclasses.field(
        default_factory=lambda: defaultdict(lambda: [0.0] * 4)
    )
    unknown: dict[str, None] = dataclasses.field(default_factory=dict)  # an ordered set

    def run(self, computation: Computation, times: int) -> float:
        """Seconds of one pass; adds up `times` passes."""
        computations = self.program.computations
        line = _Timeline(self, times)
        for instruction in computation.instructions.values():
            opcode, name = instruction.opcode, instruction.name
            if opcode == "while":
                trips = _trips(self.program, computation, instruction)
                if trips is None:
                    self.unknown[name] = None
                    trips = 1
                line.now += trips * self.run(computations[instruction.find(BODY)], times * trips)
            elif opcode == "call":
                line.now += self.run(computations[instruction.called], times)
            elif opcode == "conditional":
                names = set(re.findall(r"[\w.\-]+", instruction.text)) & computations.keys()
                # The dearest branch, found by passes that are made no times.
                dearest = max(names, key=lambda name: self.run(computations[name], 0))
                line.now += self.run(computations[dearest], times)
            elif opcode == "call-start":  # on the SparseCores
                for place, collective in computations[instruction.called].collectives:
                    line.begin(name, self.links.transfer(collective, place))
            elif opcode == "send" and (rendezvous := instruction.find(RENDEZVOUS)):
                line.begin(rendezvous, self.links.transfer_between_slices(instruction, computation))
            elif opcode.endswith("-done") and opcode != "send-done":
                begun = computation[instruction.operands[0]]
                line.wait(begun.find(RENDEZVOUS) or begun.name)
            elif instruction.collective and opcode.endswith("-start"):
                line.begin(name, self.links.transfer(instruction, computation))
            elif instruction.collective:
                line.block(self.links.transfer(instruction, computation))
            elif opcode == "custom-call" and not instruction.find(CYCLES):
                self._custom_call(instruction, line)
            else:
                self._operation(instruction, computation, line)
        for key in list(line.pending):  # begun for the next pass of a loop
            line.wait(key)
        return line.now

    def _custom_call(self, call: Instruction, line: _Timeline) -> None:
        """A kernel, of which libtpu does not know the cost, or a call without one."""
        target = call.find(TARGET)
        if target != "tpu_custom_call":
            if target not in FREE_CALLS:
                self.unknown[target] = None
        elif flops := _attention_flops(call, self.program):
            self.attention_flops += flops * line.times
            chip = self.links.chip
            line.spend("attention", flops / (chip.peak_flops * chip.attention_efficiency))
        else:
            self.unknown[call.name] = None

    def _operation(self, operation: Instruction, computation: Computation, line: _Timeline) -> None:
        """What libtpu knows the cost of, and the collectives, or parts of them, fused into it."""
        inner = self.program.computations.get(operation.called)
        flops = inner.matmul_flops if inner else 0
        if operation.opcode in ("convolution", "dot"):
            flops = _matmul_flops(operation, computation)
        for place, collective in inner.collectives if inner else ():
            channel = collective.find(CHANNEL)
            if place.has_call("AsyncCollectiveDone"):
                line.wait(channel)
            elif place.has_call("AsyncCollectiveStart"):
                line.begin(channel, self.links.transfer(collective, place))
            elif channel not in self.program.chains:  # else one that was started before
                line.block(self.links.transfer(collective, place))
        kind = "copies" if operation.opcode == "copy" else "matmul" if flops else "other compute"
        line.spend(kind, int(operation.find(CYCLES) or 0) / self.links.chip.clock)
        self.matmul_flops += flops * line.times
