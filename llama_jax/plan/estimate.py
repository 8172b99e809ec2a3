"""The time of one train step, read from the program that the TPU compiler scheduled.

compiled.as_text() lists a device's operations in the order of their execution, each with the
cycles that libtpu's own cost model expects. This adds them up. What that assumes:

* An operation takes its `estimated_cycles`; one without (a scalar, a DMA) takes no time. DMAs
  between memories (copy-start, slice-start) are thus taken to be hidden.
* A loop takes (limit - start) / step times its body; windowed einsums count in steps of 2.
* An attention kernel, whose cost libtpu does not know, reaches Chip.attention_efficiency of the
  peak on its causal half and on the waste of its diagonal blocks.
* A collective takes what links.py says.
* Collectives along one mesh axis share its links: they queue, but for a synchronous one, which
  goes first while the others pause. Between its start and its done a collective runs beside the
  computation; what is left of it at the done, and a synchronous one, are exposed.
* Continuation fusions are one collective: its channel appears in an async-collective-start, in
  the fusions that carry it on and in an async-collective-done.
* Latency, stragglers and the host's work are left out.
"""

import dataclasses
import re
from collections import defaultdict

from llama_jax.hardware import Chip
from llama_jax.plan.hlo import (
    BODY,
    CHANNEL,
    CYCLES,
    TARGET,
    Computation,
    Instruction,
    Module,
    attention_flops,
    matmul_flops,
    parse,
    trip_count,
)
from llama_jax.plan.links import Links, Transfer

# Fitted on six published MFU of MaxText (22B on v4-128, 16B and 32B on v5e-256, 32B and 64B on
# v5p-128, 70B on v5p-1024; attention counted causally), whose programs, by MaxText 0.2.5 and
# libtpu 0.0.46, were estimated with this module. None is on v6e or tpu7x. The spread is the factor
# by which the worst of the six misses the fit to the other five.
A_SCALE, A_SPREAD = 1.14, 1.34  # published / (model FLOPs / step_seconds / peak)
B_SCALE, B_SPREAD = 0.75, 1.14  # published / (model FLOPs / executed FLOPs)
TYPICAL_EXPOSED = 0.08  # share of exposed communication that B_SCALE is taken to contain

# Custom calls that name or reserve memory, or mark a collective.
FREE_CALLS = (
    "AllocateBuffer AssumeGatherIndicesInBound AsyncCollectiveDone AsyncCollectiveStart "
    "ConcatBitcast GatherScatterIndicesBitpacked PrepareAsyncCallDone PrepareAsyncCallStart SliceId"
).split()
RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')  # of slices
KINDS = ("matmul", "attention", "other compute", "copies", "exposed communication")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one part of the mesh, for one device and one step."""

    kind: str  # of hlo.COLLECTIVES, with " over DCN" if between slices
    axis: str  # of the mesh: "fsdp", "replica+fsdp"
    bytes: float  # that the device sends
    count: int
    seconds: float  # on the links
    exposed_seconds: float  # of these, those in which the device only waits


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time and FLOPs of one device for one step."""

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
    """Return the time, FLOPs and communication of a program.

    hlo: compiled.as_text().
    mesh_axes: name -> size, in the order of the mesh, over all slices.
    topology_shape: chips along each dimension of one slice.
    """
    module = parse(hlo)
    walk = _Walk(module, Links(chip, mesh_axes, topology_shape, module.num_partitions))
    seconds = walk.run(module.entry, 1)
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
    """Return the interval (low, high) between two estimates of MFU, neither of them a measurement.

    A: model FLOPs / step_seconds / peak, as the compiler's cost model has it, not scaled.
    B: model FLOPs / executed FLOPs, scaled to published runs, less the exposed communication that
    goes beyond theirs.
    """
    a = model_flops_per_device / estimate.step_seconds / chip.peak_flops
    excess = max(0.0, estimate.exposed_share - TYPICAL_EXPOSED)
    b = B_SCALE * model_flops_per_device / estimate.executed_flops * (1 - excess)
    return min(a, b), max(a, b)


@dataclasses.dataclass
class _InFlight:
    """A transfer that was begun and may not have ended."""

    transfer: Transfer
    start: float
    end: float
    before: "_InFlight | None"  # that it queued behind


@dataclasses.dataclass
class _Timeline:
    """One pass through a computation: the time so far, and what is under way on the links."""

    walk: "_Walk"
    times: int  # that this pass is made
    now: float = 0.0
    last: dict[str, _InFlight] = dataclasses.field(default_factory=dict)  # of each link
    pending: dict[str, _InFlight] = dataclasses.field(default_factory=dict)

    def spend(self, kind: str, seconds: float) -> None:
        """Let time pass, and count it as one of KINDS."""
        self.now += seconds
        self.walk.seconds[kind] += seconds * self.times

    def begin(self, key: str, transfer: Transfer) -> None:
        """Start a transfer, behind those that its links still carry."""
        queue = [self.last[link] for link in transfer.links if link in self.last]
        before = max(queue, key=lambda flight: flight.end, default=None)
        start = max(self.now, before.end) if before else self.now
        flight = _InFlight(transfer, start, start + transfer.seconds, before)
        self.pending[key] = flight
        self.last |= dict.fromkeys(transfer.links, flight)
        self._add(transfer, transfer.bytes, 1, transfer.seconds, 0.0)

    def wait(self, key: str) -> None:
        """Wait for a transfer, and so for those that it queued behind."""
        flight = self.pending.pop(key, None)
        if not flight or flight.end <= self.now:
            return
        since, end = self.now, flight.end
        while flight and flight.end > since:
            self._add(flight.transfer, 0.0, 0, 0.0, flight.end - max(flight.start, since))
            flight = flight.before
        self.spend("exposed communication", end - since)

    def block(self, transfer: Transfer) -> None:
        """Run a synchronous transfer, while those under way on the same links pause."""
        for flight in self.pending.values():
            if flight.end > self.now and set(flight.transfer.links) & set(transfer.links):
                flight.start += transfer.seconds if flight.start > self.now else 0.0
                flight.end += transfer.seconds
        self._add(transfer, transfer.bytes, 1, transfer.seconds, transfer.seconds)
        self.spend("exposed communication", transfer.seconds)

    def _add(self, transfer: Transfer, *values: float) -> None:
        total = self.walk.collectives[transfer.kind, transfer.axis]
        for i, value in enumerate(values):
            total[i] += value * self.times


@dataclasses.dataclass
class _Walk:
    """A walk through a module in the order of its execution, which adds up what it meets."""

    module: Module
    links: Links
    matmul_flops: float = 0
    attention_flops: float = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    # (kind, axis) -> bytes, count, seconds, exposed seconds
    collectives: defaultdict[tuple[str, str], list[float]] = dataclasses.field(
        default_factory=lambda: defaultdict(lambda: [0.0] * 4)
    )
    unknown: dict[str, None] = dataclasses.field(default_factory=dict)  # an ordered set

    def run(self, computation: Computation, times: int) -> float:
        """Return the seconds of one pass, and add up `times` passes."""
        computations = self.module.computations
        line = _Timeline(self, times)
        for instruction in computation.instructions.values():
            opcode, name = instruction.opcode, instruction.name
            if opcode == "while":
                trips = trip_count(self.module, computation, instruction)
                if trips is None:
                    self.unknown[name] = None
                    trips = 1
                line.now += trips * self.run(computations[instruction.find(BODY)], times * trips)
            elif opcode == "call":
                line.now += self.run(computations[instruction.called], times)
            elif opcode == "conditional":
                names = set(re.findall(r"[\w.\-]+", instruction.text)) & computations.keys()
                # The slowest branch, found by passes that count zero times.
                slowest = max(names, key=lambda name: self.run(computations[name], 0))
                line.now += self.run(computations[slowest], times)
            elif opcode == "call-start":  # on the SparseCores
                for holder, collective in computations[instruction.called].collectives:
                    line.begin(name, self.links.transfer(collective, holder))
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
        """Add a kernel, of which libtpu does not know the cost, or a call without one."""
        target = call.find(TARGET)
        if target != "tpu_custom_call":
            if target not in FREE_CALLS:
                self.unknown[target] = None
        elif flops := attention_flops(call, self.module):
            self.attention_flops += flops * line.times
            chip = self.links.chip
            line.spend("attention", flops / (chip.peak_flops * chip.attention_efficiency))
        else:
            self.unknown[call.name] = None

    def _operation(self, operation: Instruction, computation: Computation, line: _Timeline) -> None:
        """Add what libtpu knows the cost of, and the (parts of) collectives fused into it."""
        inner = self.module.computations.get(operation.called)
        flops = inner.matmul_flops if inner else 0
        if operation.opcode in ("convolution", "dot"):
            flops = matmul_flops(operation, computation)
        for holder, collective in inner.collectives if inner else ():
            channel = collective.find(CHANNEL)
            if holder.has_call("AsyncCollectiveDone"):
                line.wait(channel)
            elif holder.has_call("AsyncCollectiveStart"):
                line.begin(channel, self.links.transfer(collective, holder))
            elif channel not in self.module.chains:  # else one that was started before
                line.block(self.links.transfer(collective, holder))
        kind = "copies" if operation.opcode == "copy" else "matmul" if flops else "other compute"
        line.spend(kind, int(operation.find(CYCLES) or 0) / self.links.chip.clock)
        self.matmul_flops += flops * line.times
