"""What transformers computes, for test_model.py; python tests/torch_reference.py DIRECTORY.

A process of its own: the CUDA builds of torch crash beside TensorFlow. Reads DIRECTORY/*.npz, each
with "config" (JSON for LlamaConfig), "tokens" and a state dict, and writes NAME.logits.npy by it.
Reads norm/{x,scale}.npy and writes norm/y.npy: LlamaRMSNorm in bf16.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

directory = Path(sys.argv[1])
for path in directory.glob("*.npz"):
    arrays = dict(np.load(path))
    config, tokens = json.loads(str(arrays.pop("config"))), torch.tensor(arrays.pop("tokens"))
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    with torch.no_grad():
        np.save(path.with_suffix(".logits.npy"), model.eval()(tokens).logits.numpy())

x, scale = (torch.tensor(np.load(directory / "norm" / f"{name}.npy")) for name in ("x", "scale"))
norm = LlamaRMSNorm(x.shape[-1], eps=1e-6).to(torch.bfloat16)
norm.weight.data = scale.bfloat16()
np.save(directory / "norm" / "y.npy", norm(x.bfloat16()).float().detach().numpy())
