"""The links of a slice: which devices a collective joins, what each sends, and how long that takes.

A collective is a ring over the torus axes that its group spans: the bytes that a device sends over
the bidirectional bandwidth of these axes, half of it where one lacks its wraparound. A group that
is not made of whole axes is taken to be a block, which has a ring of its own. An all-to-all takes a
quarter of an all-gather. A permute has one of the two directions to itself. Between slices every
device has its chip's share of the data-centre network, and a reduction is a ring over the slices.

Mesh axes are named from device ids, which jax.jit numbers in the order of the mesh. The program of
several slices is that of one of them; the slices lie along the first axes of the mesh.
"""

import dataclasses
import functools
import itertools
import math
import re

from llama_jax.hardware import Chip
from llama_jax.plan.hlo import Computation, Instruction, integers

WAYS = "up", "down"
TRANSFER_TYPE = re.compile(r'_xla_megascale_transfer_type="([^"]*)"')
GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=(.*?)(?:, (?!device_ids)\w+=|$)")
MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? *\{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What one device does for one collective."""

    kind: str
    axis: str
    bytes: float  # that one device sends
    seconds: float
    links: tuple[str, ...]  # that it occupies: a way of mesh axes within a slice, or DCN


class Links:
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

    def transfer(self, collective: Instruction, computation: Computation) -> Transfer:
        """Return what a collective between the devices of a slice sends, and where."""
        kind = collective.collective
        size, axis = _span(collective.find(GROUPS), tuple(self.axes.items()))
        operands = [computation[name].num_bytes for name in collective.operands]
        if kind == "collective-permute":
            seconds = operands[0] / (self.chip.link_bandwidth / 2)
            way = _way(collective.find(GROUPS))
            links = tuple(f"{name} {way}" for name in axis.split("+"))
            return Transfer(kind, axis, operands[0], seconds, links)
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
        return Transfer(kind, axis, sent, sent / rate, links)

    def transfer_between_slices(self, send: Instruction, computation: Computation) -> Transfer:
        """Return the same of a send to the hosts, which the runtime completes to a collective."""
        kind = send.find(TRANSFER_TYPE).lower().replace("_", "-")
        sent = _sent(kind, self.num_slices, computation[send.operands[0]].num_bytes)
        seconds = sent / self.chip.network_bandwidth
        return Transfer(f"{kind} over DCN", "+".join(self.slice_axes), sent, seconds, ("DCN",))

    def _bandwidth(self, group_size: int) -> float:
        """Return the bytes/s that one device can send in a ring of so many."""
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
    """Return the bytes that each device of a ring sends."""
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
    """Return how many devices a group has, and the mesh axes along which they lie."""
    stride = num_devices = math.prod(size for _, size in axes)
    members = _members(groups, num_devices)
    spanned = []
    for axis, size in axes:
        stride //= size
        if any(len({device // stride % size for device in group}) > 1 for group in members):
            spanned.append(axis)
    return len(members[0]), "+".join(spanned)


def _way(pairs: str) -> str:
    """Return the direction, "up" or "down", in which a collective-permute circles its ring.

    Two that are each other's inverse go different ways, and do not share a link.
    """
    listed = re.findall(r"\{(\d+),(\d+)\}", pairs)
    target = {int(here): int(there) for here, there in listed}
    source = {there: here for here, there in target.items()}
    first = min(target)
    return WAYS[target[first] > source.get(first, math.inf)]


def _members(groups: str, num_devices: int) -> list[tuple[int, ...]]:
    """Return the devices of the first group, or of all groups where they are listed. Spellings:

    mesh['a'=2,'b'=4] {'b'}, of b's minor half {'b':(2)2}, of other devices than 0 to 7 in order
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}; [2,4]<=[4,2]T(1,0); {{0,1},{2,3}}; {}, all.
    """
    if match := MESH.match(groups):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        strides = dict(zip(sizes, _strides(tuple(sizes.values())), strict=True))
        positions = [0]
        for axis, major, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3]):
            size = int(part or sizes[axis])
            stride = strides[axis] * (sizes[axis] // (int(major) * size) if part else 1)
            positions = [p + i * stride for p in positions for i in range(size)]
        devices = _iota(match[2]) if match[2] else range(num_devices)
        return [tuple(devices[position] for position in positions)]
    if match := re.match(r"\[\d+,(\d+)\]<=(.*)", groups):
        return [tuple(_iota(match[2])[: int(match[1])])]
    listed = re.findall(r"\{([\d,]+)\}", groups)
    return [integers(group) for group in listed] or [tuple(range(num_devices))]


def _iota(text: str) -> list[int]:
    """Return what [4,2]T(1,0) says: 0 to 7 as an array of 4x2, transposed, read in order."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match, text
    dims = integers(match[1])
    strides = _strides(dims)
    order = integers(match[2] or "") or range(len(dims))
    ranges = (range(0, dims[i] * strides[i], strides[i]) for i in order)
    return [sum(offsets) for offsets in itertools.product(*ranges)]


def _strides(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the distance between neighbours along each dimension of a row-major array."""
    return tuple(math.prod(dims[i + 1 :]) for i in range(len(dims)))
