"""A model and tokenizer of LLaMA 3's kind by transformers, for test_transformers.py.

python tests/helpers/foreign_llama.py KIND DIRECTORY is a process of its own, as torch_reference.py.
Reads DIRECTORY/{config,texts}.json and writes DIRECTORY/hf, by transformers alone, logits.npy of
DIRECTORY/tokens.npy, and ids.json: of each text.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers import byte_level

kind, directory = sys.argv[1], Path(sys.argv[2])
made = getattr(byte_level, kind)()
bos, eos = {"llama3": (0, [1, 3]), "smollm": (0, 0)}[kind]
config = json.loads((directory / "config.json").read_text())
config |= {"vocab_size": made.get_vocab_size(), "bos_token_id": bos, "eos_token_id": eos}
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**config)).eval()  # pyright: ignore[reportCallIssue]
model.save_pretrained(directory / "hf")
names = {"bos_token": made.id_to_token(bos), "eos_token": made.id_to_token(1)}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
tokenizer.save_pretrained(directory / "hf")
with torch.no_grad():
    logits = model(torch.tensor(np.load(directory / "tokens.npy"))).logits
np.save(directory / "logits.npy", logits.numpy())
texts = json.loads((directory / "texts.json").read_text())
ids = [tokenizer(text)["input_ids"] for text in texts]
(directory / "ids.json").write_text(json.dumps(ids))
