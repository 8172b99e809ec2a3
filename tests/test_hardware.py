"""Slices by name, and figures of chips."""

import pytest

from helpers.programs import V5E
from llama_jax.config import UserError
from llama_jax.hardware import CHIPS, Slice, parse_slice

# Slices


def test_slices_are_read_and_written():
    pod = parse_slice("2xv5e:16x16")
    assert pod == Slice(V5E, (16, 16), 2)
    assert (pod.name, pod.num_chips, pod.num_devices) == ("2xv5e:16x16", 512, 512)
    assert parse_slice("tpu7x:4x4x8").num_devices == 2 * 128
    assert parse_slice("h100:64").num_chips == 64
    assert parse_slice("v4:8x16x16").name == "v4:8x16x16"


@pytest.mark.parametrize(
    ("accelerator_type", "name"),
    [
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("2xv5litepod-256", "2xv5e:16x16"),
        ("v6e-8", "v6e:2x4"),
        ("v4-8", "v4:2x2x1"),
        ("v4-32", "v4:2x2x4"),
        ("v5p-128", "v5p:4x4x4"),
        ("v4-384", "v4:4x4x12"),
        ("v5p-512", "v5p:4x8x8"),
        ("v4-1536", "v4:8x8x12"),
        ("v4-4096", "v4:8x16x16"),
    ],
)
def test_accelerator_types_are_slices(accelerator_type, name):
    """As cloud.google.com/tpu/docs lists them: of v4 and v5p the number counts cores."""
    assert parse_slice(accelerator_type).name == name


@pytest.mark.parametrize(
    ("name", "accelerator_type", "hosts"),
    [
        ("v5e:1x1", "v5litepod-1", 1),
        ("v5e:2x4", "v5litepod-8", 1),
        ("2xv5e:4x4", "v5litepod-16", 4),
        ("v6e:16x16", "v6e-256", 64),
        ("v4:2x2x1", "v4-8", 1),
        ("v4:2x2x2", "v4-16", 2),
        ("v5p:4x4x4", "v5p-128", 16),
        ("v5p:4x8x8", "v5p-512", 64),
        ("v5p:4x4x16", None, 64),
        ("tpu7x:2x2x2", None, 2),
    ],
)
def test_slices_have_accelerator_types_and_hosts(name, accelerator_type, hosts):
    """As cloud.google.com/tpu/docs lists them. Another shape than the usual one has no name."""
    target = parse_slice(name)
    assert (target.accelerator_type, target.hosts_per_slice) == (accelerator_type, hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8x8", r"got '8x8', expected \[SLICESx\]CHIP:SHAPE"),
        ("0xv5e:8x8", "no chip '0xv5e'"),
        ("v5e:", "expected"),
        ("trillium:8x8", "no chip 'trillium'; there are v4, v5e, .* trillium is v6e"),
        ("v5litepod:8x8", "v5litepod is v5e"),
        ("v5e:4x4x4", "v5e has no shape 4x4x4; it has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e:16x32", "v6e has no shape 16x32; it has"),
        ("v5p:8x8", "v5p has no shape 8x8; it has 2x2x1, 2x2x2, 2x2x4, 2x4x4 and multiples of 4"),
        ("v5p:4x4x6", "v5p has no shape 4x4x6"),
        ("v4:8x4x4", "ascending order, such as 4x4x4 or 4x8x8"),
        ("h100:8x8", "h100 has no shape 8x8; it has a number of GPUs only, such as h100:64"),
        ("2xh100:8", "GPUs come in no slices"),
        ("v5e-8", "no accelerator type v5e-8; there are v4-N, v5litepod-N, v5p-N, v6e-N; other"),
        ("v5litepod-12", "v5litepod-12 does not exist; the number is of chips, and v5e has 1x1,"),
        ("v5p-12", "v5p-12 does not exist; the number is of cores, two a chip, and v5p has 2x2x1"),
        ("v4-9", "v4-9 does not exist"),
    ],
)
def test_what_is_no_slice_is_refused_in_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_slice(text)
    assert "\n" not in str(error.value)


def test_the_clock_of_chips_agrees_with_their_peak():
    per_cycle = {name: chip.peak_flops / chip.clock for name, chip in CHIPS.items() if chip.clock}
    expected = {"v4": 2**18, "v5e": 2**17, "v5p": 2**18, "v6e": 2**19, "tpu7x": 2**19}
    assert per_cycle == pytest.approx(expected, rel=3e-3)


def test_wraparound_of_pods_and_cubes():
    assert V5E.wraparound((8, 16)) == (False, True)
    assert CHIPS["v5p"].wraparound((2, 4, 4)) == (False, False, False)
    assert CHIPS["v5p"].wraparound((4, 4, 8)) == (True, True, True)
