"""Texts that go on from prompts, as they come."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Literal

from llama_jax.data.tokenizer import Vocabulary
from llama_jax.generation.decoder import Decoder
from llama_jax.generation.sampling import Sampling, generate

UNDECODED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


@dataclasses.dataclass
class Completion:
    prompt: str
    text: str = ""  # what goes on from the prompt; later tokens only add to it
    num_tokens: int = 0  # drawn for it, those of the stop or the </s> that ended it included
    end: Literal["eos", "stop", "length"] | None = None  # why it ended; None: it goes on


def complete(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: list[str],
    max_tokens: int,
    sampling: Sampling,
    stops: list[str],
) -> Iterator[list[Completion]]:
    """Yield the completions so far, as they grow. stops: texts before which a completion ends."""
    heads = [vocabulary.prompt(prompt) for prompt in prompts]
    completions = [Completion(prompt) for prompt in prompts]

    def text_of(row: int, tokens: list[int]) -> str:
        # A model may have more rows than the tokenizer has tokens. </s> is one without text.
        known = [token for token in tokens if token < vocabulary.vocab_size]
        return vocabulary.decode(heads[row] + known)[len(vocabulary.decode(heads[row])) :]

    def ended(row: int, tokens: list[int]) -> bool:
        completion = completions[row]
        text = text_of(row, tokens)
        found = [text.find(stop) for stop in stops if stop in text]
        completion.num_tokens = len(tokens)
        if found:
            completion.text, completion.end = text[: min(found)], "stop"
            while any(stop in text_of(row, tokens[: completion.num_tokens - 1]) for stop in stops):
                completion.num_tokens -= 1
        elif tokens[-1] in vocabulary.eos_ids:
            completion.text, completion.end = text, "eos"
        elif len(tokens) == max_tokens:
            completion.text, completion.end = text, "length"
        else:
            completion.text = printable(text, stops)
        return completion.end is not None

    for _ in generate(decoder, heads, max_tokens, sampling, vocabulary.eos_ids, ended):
        yield completions


def printable(text: str, stops: list[str]) -> str:
    """Return the text without an end that could be the beginning of a character or of a stop."""
    text = text.rstrip(UNDECODED)
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]


def print_text(states: Iterable[list[Completion]]) -> None:
    """Print each prompt and what goes on from it, as it comes, one prompt after the other."""
    row, printed = 0, ""
    for completions in states:
        for completion in completions[row:]:
            text = completion.prompt + completion.text
            print(text.removeprefix(printed), end="", flush=True)
            printed = text
            if completion.end is None:
                break
            print("\n", flush=True)
            row, printed = row + 1, ""


def print_jsonl(states: Iterable[list[Completion]]) -> None:
    """Print the fields of Completion, a line for each prompt, in their order."""
    row = 0
    for completions in states:
        while row < len(completions) and completions[row].end is not None:
            print(json.dumps(dataclasses.asdict(completions[row])), flush=True)
            row += 1
