"""budget: the model to train for a demand."""

import argparse
import dataclasses
import math

from llama_jax.commands import options
from llama_jax.config import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--laws", required=True, help="a laws.json of fit, or the name of a published law"
    )
    parser.add_argument(
        "--inference-tokens", type=options.positive(), help="served over the model's life"
    )
    parser.add_argument(
        "--requests-per-day", type=options.positive(), help="instead, with these two:"
    )
    parser.add_argument("--tokens-per-request", type=options.positive(), help="prompt and answer")
    parser.add_argument("--months", type=options.positive(), help="of serving")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--quality-of", type=options.positive(), help="N: the loss of a compute-optimal model of N"
    )
    target.add_argument(
        "--loss", type=options.positive(), help="nats a token, as in the law's table"
    )
    target.add_argument(
        "--train-flops", type=options.positive(), help="C: the loss of a compute-optimal model of C"
    )
    for unit, name in (("flops", "FLOPs"), ("money", "dollars"), ("energy", "MWh")):
        target.add_argument(
            f"--total-{unit}", type=options.positive(), help=f"X: the best loss for {name} in all"
        )
    parser.add_argument("--train-chip", default="a100", help="a chip of plan (default: a100)")
    parser.add_argument("--serve-chip", default="a100", help="a chip of plan (default: a100)")
    parser.add_argument(
        "--train-price", type=options.positive(), help="dollars for a chip and hour"
    )
    parser.add_argument(
        "--serve-price", type=options.positive(), help="dollars for a chip and hour"
    )
    for name, meaning in (
        ("train-mfu", "share of the peak that training reaches"),
        ("prefill-mfu", "the same for prompts"),
        ("decode-mfu", "the same for answers"),
    ):
        parser.add_argument(f"--{name}", type=options.positive(1), help=meaning)
    parser.add_argument(
        "--prompt-share",
        type=options.number(float, 0, 1),
        help="prompts' share of the tokens served",
    )
    parser.add_argument(
        "--max-weights-gb", type=options.positive(), help="memory for the weights, bf16"
    )
    parser.add_argument(
        "--max-ms-per-token", type=options.positive(), help="on one serving chip, batch 1"
    )
    parser.add_argument(
        "--figure", type=options.local_path, help="draw cost against demand into this .png or .svg"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from llama_jax.scaling import costs
    from llama_jax.scaling.budget import decide, over_demand
    from llama_jax.scaling.fit import read_law
    from llama_jax.scaling.tables import as_json, print_decision

    rate = (args.requests_per_day, args.tokens_per_request, args.months)
    if args.inference_tokens is None and None in rate or args.inference_tokens and any(rate):
        raise UserError(
            "the demand: give --inference-tokens, or --requests-per-day with --tokens-per-request "
            "and --months"
        )
    served = args.inference_tokens
    if served is None:
        served = math.prod(rate) * costs.DAYS_PER_MONTH
    given = vars(args)
    names = [field.name for field in dataclasses.fields(costs.Assumptions)]
    assumptions = costs.resolve(
        costs.Assumptions(**{n: given[n] for n in names if given.get(n) is not None})
    )
    targets = ("quality_of", "loss", "train_flops", "total_flops", "total_money", "total_energy")
    target = next((kind, given[kind]) for kind in targets if given[kind] is not None)
    law, samples, ranges = read_law(args.laws)
    found = decide(law, samples, ranges, served, target, assumptions)
    if args.figure:
        from llama_jax.scaling.figures import draw_budget

        draw_budget(found, over_demand(law, samples, found), args.figure)
    if args.json:
        print(as_json(dataclasses.asdict(found)))
    else:
        print_decision(found)
    return 0
