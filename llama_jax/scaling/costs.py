"""What training and serving cost: FLOPs, money and energy of one FLOP of each kind, and limits."""

import dataclasses

from llama_jax.config import UserError
from llama_jax.hardware import CHIPS, Chip

DAYS_PER_MONTH = 365.25 / 12
TRAINING, INFERENCE = 6, 2  # FLOPs a parameter and token

# Of one chip for an hour, on demand, in US dollars. a100: an eighth of AWS p4de.24xlarge in
# us-east-1, 27.447 in November 2026. For another chip the user must know.
PRICES = {"a100": 3.43}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """All that FLOPs alone do not say; the defaults' sources are in SOURCES."""

    train_chip: str = "a100"
    serve_chip: str = "a100"
    train_price: float | None = None  # US dollars for a chip and hour; None: of PRICES
    serve_price: float | None = None
    train_mfu: float = 0.47
    prefill_mfu: float = 0.5
    decode_mfu: float = 0.01
    prompt_share: float = 0.245
    pue: float = 1.1
    kg_per_kwh: float = 0.385
    bytes_per_param: float = 2.0
    max_weights_gb: float | None = None
    max_ms_per_token: float | None = None


SOURCES = {
    "train_chip": "the LLaMA paper's, A100-80GB; peak and watts: llama_jax/hardware.py",
    "serve_chip": "as for training",
    "train_price": "AWS p4de.24xlarge on demand, us-east-1, November 2026, an eighth",
    "serve_price": "as for training",
    "train_mfu": "mean of the LLaMA paper's four runs by 6ND, from Table 15's GPU-hours",
    "prefill_mfu": "as in training, about one half: a prompt is read at once (arXiv 2401.00448)",
    "decode_mfu": "down to 1% in decoding (arXiv 2401.00448)",
    "prompt_share": "LMSYS-Chat-1M, arXiv 2309.11998: 69.5 tokens asked, 214.5 answered",
    "pue": "LLaMA paper, section 6",
    "kg_per_kwh": "LLaMA paper, section 6: US mean",
    "bytes_per_param": "bfloat16",
}


def resolve(given: Assumptions) -> Assumptions:
    """Return the assumptions with the prices that PRICES knows. Raise UserError for an unknown
    chip."""
    for option, name in (("--train-chip", given.train_chip), ("--serve-chip", given.serve_chip)):
        if name not in CHIPS:
            raise UserError(f"{option}: no chip {name!r}; there are {', '.join(CHIPS)}")
    return dataclasses.replace(
        given,
        train_price=_price(given.train_price, given.train_chip),
        serve_price=_price(given.serve_price, given.serve_chip),
    )


def _price(given: float | None, chip: str) -> float | None:
    return PRICES.get(chip) if given is None else given


def chip_hours(flops: float, chip: Chip, mfu: float) -> float:
    return flops / (chip.peak_flops * chip.devices_per_chip * mfu) / 3600


def energy_mwh(hours: float, watts: float, pue: float) -> float:
    """Return the energy of chips alone and the data centre's overhead (LLaMA paper, section 6)."""
    return hours * watts * pue / 1e6


def carbon_tonnes(mwh: float, kg_per_kwh: float) -> float:
    return mwh * kg_per_kwh


@dataclasses.dataclass(frozen=True)
class Rate:
    """What one FLOP of training, of reading a prompt and of writing an answer costs."""

    train: float
    prefill: float
    decode: float

    def served_as_flops(self, prompt_share: float) -> float:
        """Return the cost of a FLOP of inference, in FLOPs of training."""
        return (prompt_share * self.prefill + (1 - prompt_share) * self.decode) / self.train


def rates(a: Assumptions) -> dict[str, Rate]:
    """Return the rates by unit: flops, and money (dollars) and energy (MWh) where price and watts
    are known."""
    train, serve = CHIPS[a.train_chip], CHIPS[a.serve_chip]
    hours = Rate(
        chip_hours(1, train, a.train_mfu),
        chip_hours(1, serve, a.prefill_mfu),
        chip_hours(1, serve, a.decode_mfu),
    )

    def priced(train_hour: float, serve_hour: float) -> Rate:
        return Rate(hours.train * train_hour, hours.prefill * serve_hour, hours.decode * serve_hour)

    found = {"flops": Rate(1, 1, 1)}
    if a.train_price and a.serve_price:
        found["money"] = priced(a.train_price, a.serve_price)
    if train.watts and serve.watts:
        found["energy"] = priced(
            energy_mwh(1, train.watts, a.pue), energy_mwh(1, serve.watts, a.pue)
        )
    return found


def max_params(a: Assumptions) -> float | None:
    """Return the size of the largest model whose weights fit the memory, and are read once a
    token in time (batch of one; the cache of keys and values is not counted). None: no limit was
    given."""
    limits = []
    if a.max_weights_gb is not None:
        limits.append(a.max_weights_gb * 1e9 / a.bytes_per_param)
    if a.max_ms_per_token is not None:
        limits.append(a.max_ms_per_token / 1e3 * _bandwidth(a) / a.bytes_per_param)
    return min(limits, default=None)


def ms_per_token(params: float, a: Assumptions) -> float:
    """Return the least milliseconds per token, for a batch of one on one chip: weights are read
    once a token."""
    return 1e3 * params * a.bytes_per_param / _bandwidth(a)


def _bandwidth(a: Assumptions) -> float:
    chip = CHIPS[a.serve_chip]
    return chip.hbm_bandwidth * chip.devices_per_chip
