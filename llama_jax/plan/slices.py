"""Slices of chips to plan a run for, by name: v5e:8x8, 2xv5e:16x16 (two slices), h100:64."""

import dataclasses
import math
import os
import re
from typing import Any

from llama_jax.config import UserError
from llama_jax.flops import PEAK_FLOPS

GIB = 2**30
POD_SIDE = 16  # of v5e and v6e, whose links close the torus only along a side of the whole pod
CUBE_SIDE = 4  # of v4, v5p and tpu7x, whose pods are made of cubes of 4x4x4 with optical switches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as jax counts them: a chip, but on tpu7x one of a chip's two halves."""

    name: str
    device_kind: str  # jax's
    hbm_bytes: float  # that a program can use
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s both ways: of a torus axis, or of a GPU's NVLinks together
    network_bandwidth: float  # bytes/s that one device sends to other slices or nodes
    watts: float | None = None  # of a whole chip; None: no public figure
    clock: float = 0.0  # Hz of the cycles in libtpu's programs
    dimensions: int = 0  # of the torus; 0: GPUs, of which NVLink joins those of a node
    node_size: int = 0  # GPUs in a node
    devices_per_chip: int = 1
    attention_efficiency: float = 0.5  # share of the peak that the kernel is assumed to reach

    @property
    def peak_flops(self) -> float:
        """bf16 FLOP/s. The table has tpu7x's by the chip."""
        return PEAK_FLOPS[self.device_kind] / self.devices_per_chip

    def wraparound(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Whether the links of a slice close to a ring along each of its dimensions."""
        if self.dimensions == 2:
            return tuple(size == POD_SIDE for size in shape)
        return (all(size % CUBE_SIDE == 0 for size in shape),) * len(shape)


# hbm_bandwidth and network_bandwidth: cloud.google.com/tpu/docs/<chip>, of the pod's network the
# share of one chip. hbm_bytes: what libtpu 0.0.42.1 leaves to a program, in its message to one that
# is too large. clock: the peak over the FLOPs of a cycle (2^18 on v4 and v5p, 2^17 on v5e, 2^19 on
# v6e and tpu7x); the cycles that libtpu expects of large matmuls are 2-44% more. link_bandwidth:
# jax-ml.github.io/scaling-book, chapter TPUs; that of v4, and 90% of the nominal figure of others.
# attention_efficiency: assumed; less on v6e and tpu7x, whose matrix units of 256x256 are half empty
# with heads of 128.
_TPUS = (
    Chip(
        name="v4",
        device_kind="TPU v4",
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=9e10,
        network_bandwidth=6.25e9,  # scaling book: 25 GB/s of a host with 4 chips
        watts=170,  # the mean measured; minimum 90, maximum 192 (cloud.google.com/tpu/docs/v4)
        clock=1.05e9,
        dimensions=3,
    ),
    Chip(
        name="v5e",
        device_kind="TPU v5 lite",
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=8.19e11,
        link_bandwidth=9e10,
        network_bandwidth=3.125e9,  # 6.4 Tbit/s of a pod of 256
        clock=1.5e9,
        dimensions=2,
    ),
    Chip(
        name="v5p",
        device_kind="TPU v5",
        hbm_bytes=95.74 * GIB,
        hbm_bandwidth=2.765e12,
        link_bandwidth=1.8e11,
        network_bandwidth=6.25e9,
        clock=1.75e9,
        dimensions=3,
    ),
    Chip(
        name="v6e",
        device_kind="TPU v6 lite",
        hbm_bytes=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        link_bandwidth=1.8e11,
        network_bandwidth=12.5e9,
        clock=1.75e9,
        dimensions=2,
        attention_efficiency=0.28,
    ),
    Chip(
        name="tpu7x",
        device_kind="TPU7x",
        hbm_bytes=94.75 * GIB,
        hbm_bandwidth=7.38e12 / 2,
        link_bandwidth=1.8e11 / 2,  # assumed: v5p's, as the nominal 1200 GB/s, for two devices
        network_bandwidth=12.5e9 / 2,
        clock=2.2e9,
        dimensions=3,
        devices_per_chip=2,
        attention_efficiency=0.28,
    ),
)
# For arithmetic only: data sheets of the SXM modules, HBM without what driver and XLA reserve.
# network_bandwidth: assumed, the network card that each GPU of a DGX A100, H100 and H200 has.
_GPUS = (
    Chip(
        name="a100",
        device_kind="NVIDIA A100-SXM4-80GB",
        hbm_bytes=80e9,
        hbm_bandwidth=2.039e12,
        link_bandwidth=6e11,
        network_bandwidth=25e9,
        watts=400,
        node_size=8,
    ),
    Chip(
        name="h100",
        device_kind="NVIDIA H100 80GB HBM3",
        hbm_bytes=80e9,
        hbm_bandwidth=3.35e12,
        link_bandwidth=9e11,
        network_bandwidth=50e9,
        watts=700,
        node_size=8,
    ),
    Chip(
        name="h200",
        device_kind="NVIDIA H200",
        hbm_bytes=141e9,
        hbm_bandwidth=4.8e12,
        link_bandwidth=9e11,
        network_bandwidth=50e9,
        watts=700,
        node_size=8,
    ),
)
CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
ALIASES = "v5litepod is v5e, trillium is v6e, v7 and ironwood are tpu7x"

# cloud.google.com/tpu/docs/v5e and v6e.
SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# cloud.google.com/tpu/docs/v5p; from a cube on, any in which each dimension is a multiple of 4.
SHAPES_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice, or several equal ones that a data-centre network joins."""

    chip: Chip
    shape: tuple[int, ...]  # chips along each dimension of one slice
    num_slices: int = 1

    @property
    def name(self) -> str:
        slices = f"{self.num_slices}x" if self.num_slices > 1 else ""
        return f"{slices}{self.chip.name}:{_text(self.shape)}"

    @property
    def num_chips(self) -> int:
        return self.num_slices * math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip


def parse(text: str) -> Slice:
    """Reads "v5p:4x4x8", "2xv5e:16x16" or "h100:64". Raises UserError."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    if not match:
        raise UserError(
            f"slice: got {text!r}, expected [SLICESx]CHIP:SHAPE, e.g. v5e:8x8, v5p:4x4x8, "
            "2xv5e:16x16 or h100:64"
        )
    slices, name, sides = match.groups()
    if name not in CHIPS:
        raise UserError(f"slice: no chip {name!r}; there are {', '.join(CHIPS)} ({ALIASES})")
    chip, shape = CHIPS[name], tuple(map(int, sides.split("x")))
    if not _exists(chip, shape):
        raise UserError(f"slice: {name} has no shape {sides}; it has {_accepted(chip)}")
    if slices and not chip.dimensions:
        raise UserError(f"slice: GPUs come in no slices: {name}:N for N of them, not {text!r}")
    return Slice(chip, shape, int(slices or 1))


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if chip.dimensions == 2:
        return shape in SHAPES_2D
    if chip.dimensions == 3:
        cubes = len(shape) == 3 and all(chip.wraparound(shape)) and list(shape) == sorted(shape)
        return cubes or shape in SHAPES_3D
    return len(shape) == 1


def _accepted(chip: Chip) -> str:
    if chip.dimensions == 2:
        return ", ".join(map(_text, SHAPES_2D))
    if chip.dimensions == 3:
        small = ", ".join(map(_text, SHAPES_3D))
        return f"{small} and multiples of 4 in ascending order, such as 4x4x4 or 4x8x8"
    return f"a number of GPUs only, such as {chip.name}:{8 * chip.node_size}"


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def devices(slice: Slice) -> list[Any]:
    """The devices of a slice that need not be there, to compile for. Raises UserError.

    Imports jax; libtpu aborts the whole process on some errors.
    """
    chip, shape = slice.chip, slice.shape
    if not chip.dimensions:
        raise UserError(f"slice: {slice.name}: programs are compiled for TPUs only")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no lock: no TPU is touched
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor is the metadata server of a TPU VM
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    flat = (*shape, 1)[:3]  # libtpu counts three dimensions
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip.name}:{_text(shape)}",
            chips_per_host_bounds=(min(flat[0], 2), min(flat[1], 2), 1),
            wrap=(*chip.wraparound(shape), False)[:3],
            num_slices=slice.num_slices,
            **options,
        )
    except RuntimeError as e:
        if "TPU support not installed" not in str(e):
            raise
        raise UserError(
            f"slice: libtpu, the compiler for {slice.name}, is not installed; "
            "pip install -r requirements-tpu.txt (no TPU is needed)"
        ) from e
    return list(topology.devices)
