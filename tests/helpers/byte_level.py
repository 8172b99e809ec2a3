"""Small tokenizers of the kinds of LLaMA 3 and SmolLM2, trained here, as a tokenizer.json."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = (
    "The quick brown fox jumps over the lazy dog, it's 1234567 years old.\n\n\tdef f(x):\n"
    "        return x ** 2  # Zwölf Boxkämpfer, \u4f60\u597d\n"
)
# As the tokenizer.json of LLaMA 3 has it.
WORDS_OF_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SIZE = 400
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
SMOLLM_TOKENS = ["<|endoftext|>", "<|im_start|>"]


def llama3() -> Tokenizer:
    """Return one that puts bos before a text; two further tokens end a turn."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS_OF_LLAMA3), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _train(made, LLAMA3_TOKENS)
    bos = LLAMA3_TOKENS[0]
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


def smollm() -> Tokenizer:
    """Return one that puts nothing before a text, and has one token for both of its ends."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    _train(made, SMOLLM_TOKENS)
    return made


def _train(made: Tokenizer, special_tokens: list[str]) -> None:
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 10, trainer)


def save(made: Tokenizer, directory: Path, bos: int, eos: int | list[int]) -> Path:
    """Write tokenizer.json and what says its ends; return the file."""
    directory.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": bos, "eos_token_id": eos}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    made.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"
