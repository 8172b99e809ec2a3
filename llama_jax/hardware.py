"""TPU and GPU chips, their hosts, and slices of them: v5e:8x8, 2xv5e:16x16, v5p-128, h100:64.

Every figure has its source beside it or in the comment above the chips. Imports no jax.
"""

import dataclasses
import math
import re

from llama_jax.config import UserError

GIB = 2**30
POD_SIDE = 16  # of v5e and v6e, whose links close the torus only along a side of the whole pod
CUBE_SIDE = 4  # of v4, v5p and tpu7x, whose pods are made of cubes of 4x4x4 with optical switches
HOST_BANDWIDTH = 16e9  # bytes/s of a chip, each way: jax-ml.github.io/scaling-book, PCIe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as jax counts them: a chip, but on tpu7x one of a chip's two halves."""

    name: str
    device_kind: str  # jax's
    peak_flops: float  # dense bf16 FLOP/s
    hbm_bytes: float  # that a program can use
    hbm_bandwidth: float  # bytes/s
    host_bytes: float = math.inf  # a whole chip's share of its host's memory; inf: not known
    link_bandwidth: float  # bytes/s both ways: of a torus axis, or of a GPU's NVLinks together
    network_bandwidth: float  # bytes/s that one device sends to other slices or nodes
    watts: float | None = None  # of a whole chip; None: no public figure
    clock: float = 0.0  # Hz of the cycles in libtpu's programs
    dimensions: int = 0  # of the torus; 0: GPUs, of which NVLink joins those of a node
    runtime: str | None = None  # the image of a Cloud TPU VM; None: the Cloud TPU API has none
    node_size: int = 0  # GPUs in a node
    devices_per_chip: int = 1
    attention_efficiency: float = 0.5  # share of the peak that the kernel is assumed to reach
    has_cycles: bool = True  # whether compiled programs name the cycles of their operations
    calibrated: bool = False  # whether plan/estimate.py was fitted to published runs on it

    def wraparound(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Return, for each dimension of a slice, whether its links close to a ring there."""
        if self.dimensions == 2:
            return tuple(size == POD_SIDE for size in shape)
        return (all(size % CUBE_SIDE == 0 for size in shape),) * len(shape)


# hbm_bandwidth and network_bandwidth: cloud.google.com/tpu/docs/<chip>, of the pod's network the
# share of one chip. hbm_bytes: what libtpu 0.0.42.1 leaves to a program, in its message to one that
# is too large. host_bytes: cloud.google.com/tpu/docs, machine types with four chips. clock: the
# peak over the FLOPs of a cycle (2^18 on v4 and v5p, 2^17 on v5e, 2^19 on v6e and tpu7x); the
# cycles that libtpu expects of large matmuls are 2-44% more. link_bandwidth:
# jax-ml.github.io/scaling-book, chapter TPUs; that of v4, and 90% of the nominal figure of others.
# runtime: cloud.google.com/tpu/docs/runtimes. attention_efficiency: assumed; less on v6e and tpu7x,
# whose matrix units of 256x256 are half empty with heads of 128.
_TPUS = (
    Chip(
        name="v4",
        device_kind="TPU v4",
        peak_flops=275e12,  # cloud.google.com/tpu/docs/v4
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1.2e12,
        host_bytes=407e9 / 4,
        link_bandwidth=9e10,
        network_bandwidth=6.25e9,  # scaling book: 25 GB/s of a host with 4 chips
        watts=170,  # the mean measured; minimum 90, maximum 192 (cloud.google.com/tpu/docs/v4)
        clock=1.05e9,
        dimensions=3,
        runtime="tpu-ubuntu2204-base",
        calibrated=True,
    ),
    Chip(
        name="v5e",
        device_kind="TPU v5 lite",
        peak_flops=197e12,  # cloud.google.com/tpu/docs/v5e
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=8.19e11,
        host_bytes=192e9 / 4,
        link_bandwidth=9e10,
        network_bandwidth=3.125e9,  # 6.4 Tbit/s of a pod of 256
        clock=1.5e9,
        dimensions=2,
        runtime="v2-alpha-tpuv5-lite",
        calibrated=True,
    ),
    Chip(
        name="v5p",
        device_kind="TPU v5",
        peak_flops=459e12,  # cloud.google.com/tpu/docs/v5p
        hbm_bytes=95.74 * GIB,
        hbm_bandwidth=2.765e12,
        host_bytes=448e9 / 4,
        link_bandwidth=1.8e11,
        network_bandwidth=6.25e9,
        clock=1.75e9,
        dimensions=3,
        runtime="v2-alpha-tpuv5",
        calibrated=True,
    ),
    Chip(
        name="v6e",
        device_kind="TPU v6 lite",
        peak_flops=918e12,  # cloud.google.com/tpu/docs/v6e
        hbm_bytes=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        host_bytes=720e9 / 4,
        link_bandwidth=1.8e11,
        network_bandwidth=12.5e9,
        clock=1.75e9,
        dimensions=2,
        runtime="v2-alpha-tpuv6e",
        attention_efficiency=0.28,
    ),
    Chip(
        name="tpu7x",
        device_kind="TPU7x",
        peak_flops=2307e12 / 2,  # cloud.google.com/tpu/docs/tpu7x
        hbm_bytes=94.75 * GIB,
        hbm_bandwidth=7.38e12 / 2,
        link_bandwidth=1.8e11 / 2,  # assumed: v5p's, as the nominal 1200 GB/s, for two devices
        network_bandwidth=12.5e9 / 2,
        clock=2.2e9,
        dimensions=3,
        devices_per_chip=2,
        attention_efficiency=0.28,
        has_cycles=False,  # under libtpu 0.0.42.1
    ),
)
# For the analytic estimate only: data sheets of the SXM modules, HBM without what driver and XLA
# reserve. network_bandwidth: assumed, the network card that each GPU of a DGX A100, H100 and H200
# has.
_GPUS = (
    Chip(
        name="a100",
        device_kind="NVIDIA A100-SXM4-80GB",
        peak_flops=312e12,  # NVIDIA A100 data sheet
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
        peak_flops=989e12,  # NVIDIA H100 data sheet, SXM
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
        peak_flops=989e12,  # NVIDIA H200 data sheet, SXM
        hbm_bytes=141e9,
        hbm_bandwidth=4.8e12,
        link_bandwidth=9e11,
        network_bandwidth=50e9,
        watts=700,
        node_size=8,
    ),
)
CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
CHIP_OF_KIND = {chip.device_kind: chip for chip in CHIPS.values()}
# Google Cloud's accelerator types, such as v5p-128: the chip, and what its number counts for one.
ACCELERATORS = {"v4": ("v4", 2), "v5litepod": ("v5e", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
# The same on Kubernetes: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
NODE_LABELS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
ALIASES = "v5litepod is v5e, trillium is v6e, v7 and ironwood are tpu7x"

MOST_CHIPS = 2**20  # that anything here is worked out for

# cloud.google.com/tpu/docs/v5e and v6e.
SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Chips of the largest slice that is one VM, by the dimensions of the torus, and chips of each VM of
# a larger one: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
ON_ONE_HOST = {2: 8, 3: 4}
CHIPS_PER_HOST = 4

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

    @property
    def hosts_per_slice(self) -> int:
        """Return the number of VMs of one slice of TPUs."""
        chips = math.prod(self.shape)
        return 1 if chips <= ON_ONE_HOST[self.chip.dimensions] else chips // CHIPS_PER_HOST

    @property
    def accelerator_type(self) -> str | None:
        """Return Google Cloud's name of one slice, such as v5p-128; None for another shape than
        the one that the name stands for."""
        for name, (chip, counted) in ACCELERATORS.items():
            text = f"{name}-{math.prod(self.shape) * counted}"
            if chip == self.chip.name and parse_slice(text).shape == self.shape:
                return text
        return None


def parse_slice(text: str) -> Slice:
    """Read "v5p:4x4x8", "2xv5e:16x16", "h100:64", or a type such as "v5p-256", which is the first.

    Raise UserError for what is no slice.
    """
    if match := re.fullmatch(r"(?:([1-9]\d*)x)?(\w+)-([1-9]\d*)", text):
        slices, name, number = match.groups()
        return Slice(*_of_type(name, int(number)), int(slices or 1))
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    if not match:
        raise UserError(
            f"slice: got {text!r}, expected [SLICESx]CHIP:SHAPE, e.g. v5e:8x8, v5p:4x4x8, "
            "2xv5e:16x16 or h100:64, or an accelerator type, e.g. v5litepod-64 or v5p-256"
        )
    slices, name, sides = match.groups()
    if name not in CHIPS:
        raise UserError(f"slice: no chip {name!r}; there are {', '.join(CHIPS)} ({ALIASES})")
    if len(text) > 40 or math.prod(map(int, (slices or "1", *sides.split("x")))) > MOST_CHIPS:
        raise UserError(f"slice: got {text[:40]!r}, expected {MOST_CHIPS:,} chips at the most")
    chip, shape = CHIPS[name], tuple(map(int, sides.split("x")))
    if not _exists(chip, shape):
        raise UserError(f"slice: {name} has no shape {sides}; it has {_accepted(chip)}")
    if slices and not chip.dimensions:
        raise UserError(f"slice: GPUs come in no slices: {name}:N for N of them, not {text!r}")
    return Slice(chip, shape, int(slices or 1))


def _of_type(name: str, number: int) -> tuple[Chip, tuple[int, ...]]:
    """Return chip and shape of an accelerator type: the shape that Google gives if none is asked
    for, of those with as many chips the nearest to a cube."""
    if name not in ACCELERATORS:
        known = ", ".join(f"{other}-N" for other in ACCELERATORS)
        raise UserError(
            f"slice: no accelerator type {name}-{number}; there are {known}; other chips are named "
            "with their shape, e.g. tpu7x:4x4x4 or h100:64"
        )
    chip, counted = CHIPS[ACCELERATORS[name][0]], ACCELERATORS[name][1]
    chips, rest = divmod(number, counted)
    shapes = SHAPES_2D if chip.dimensions == 2 else (*SHAPES_3D, *_cubes(chips))
    found = [shape for shape in shapes if math.prod(shape) == chips and not rest]
    if not found:
        unit = "chips" if counted == 1 else "cores, two a chip"
        raise UserError(
            f"slice: {name}-{number} does not exist; the number is of {unit}, and {chip.name} has "
            f"{_accepted(chip)}"
        )
    return chip, min(found, key=sum)


def _cubes(chips: int) -> list[tuple[int, int, int]]:
    """Return the shapes of so many chips whose sides are multiples of CUBE_SIDE."""
    sides = [side for side in range(CUBE_SIDE, chips + 1, CUBE_SIDE) if chips % side == 0]
    pairs = [(a, b) for a in sides for b in sides if a <= b and chips % (a * b) == 0]
    shapes = [(a, b, chips // (a * b)) for a, b in pairs]
    return [shape for shape in shapes if shape[2] in sides and shape[1] <= shape[2]]


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
