"""From tokens to text: stops, ends, and that what was printed stays."""

import dataclasses
import json
from typing import Literal

import jax
import pytest
from flax import nnx

from llama_jax.config import ModelConfig
from llama_jax.data import tokenizer
from llama_jax.generation.completion import Completion, complete, print_jsonl, print_text, printable
from llama_jax.generation.decoder import to_decode_layout
from llama_jax.generation.sampling import Sampling
from llama_jax.model import Llama

PROMPTS = ["My fellow citizens", "Once"]
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.load("embedded")


@pytest.fixture
def states(one_device, vocabulary):
    """What complete() yields for PROMPTS and these stops; the model writes random tokens."""
    cfg = ModelConfig(
        num_layers=1,
        embed_dim=32,
        num_heads=2,
        vocab_size=vocabulary.vocab_size + 32,  # as some models have
        compute_dtype="float32",
        init_std=0.3,
    )
    decoder = to_decode_layout(jax.jit(lambda: Llama(cfg, nnx.Rngs(0)))())

    def run(stops: list[str], max_tokens: int = MAX_TOKENS) -> list[list[Completion]]:
        sampling = Sampling(temperature=1.0)
        going = complete(decoder, vocabulary, PROMPTS, max_tokens, sampling, stops)
        return [[dataclasses.replace(c) for c in completions] for completions in going]

    return run


def test_a_completion_only_grows_and_ends_before_a_stop(states):
    whole = states([])
    for before, after in zip(whole, whole[1:], strict=False):
        assert all(b.text.startswith(a.text) for a, b in zip(before, after, strict=True))
    assert [c.end for c in whole[-1]] == ["length", "length"]
    assert [c.num_tokens for c in whole[-1]] == [MAX_TOKENS] * 2
    assert all(c.end is None for c in whole[0])

    text = whole[-1][0].text
    stop = text[12:15]
    (*_, stopped) = states([stop, "never written"])
    assert stopped[0].text == text[: text.index(stop)] and stopped[0].end == "stop"
    # As many tokens as the stop needs, and not all those between two looks of the host.
    n = stopped[0].num_tokens
    assert stop in states([], n)[-1][0].text and stop not in states([], n - 1)[-1][0].text


def test_half_a_character_and_half_a_stop_wait():
    assert printable("abc\ufffd\ufffd", []) == "abc"
    assert printable("say the en", ["end", "then"]) == "say the "
    assert printable("say th", ["end", "then"]) == "say "
    assert printable("say", ["end"]) == "say"


def test_what_is_printed(capsys):
    a, b = Completion("A:"), Completion("B:")

    grown: list[tuple[str, Literal["length"] | None]] = [(" one", None), (" one two", "length")]

    def states():
        for text, end in grown:
            b.text, b.end = text, "eos"
            a.text, a.end = text, end
            yield [a, b]

    print_text(states())
    assert capsys.readouterr().out == "A: one two\n\nB: one two\n\n"
    print_jsonl(states())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {"prompt": "A:", "text": " one two", "num_tokens": 0, "end": "length"},
        {"prompt": "B:", "text": " one two", "num_tokens": 0, "end": "eos"},
    ]
