"""What transformers computes, for test_transformers.py.

python tests/helpers/torch_reference.py DIRECTORY is a process of its own: the CUDA builds of torch
crash beside TensorFlow. Reads DIRECTORY/*.npz, each with "config" (JSON for LlamaConfig), "tokens"
and a state dict; writes NAME.logits.npy by it, and NAME.continued.npy: 24 greedy tokens after 5 of
the first row and 20 of the second. Reads norm/{x,scale}.npy and writes norm/y.npy: LlamaRMSNorm in
bf16. Reads nuclei/{logits,rules}.npy and writes nuclei/left.npy: logits by (top_k, top_p) of the
rules.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.llama.modeling_llama import LlamaRMSNorm

directory = Path(sys.argv[1])
for path in directory.glob("*.npz"):
    arrays = dict(np.load(path))
    config, tokens = json.loads(str(arrays.pop("config"))), torch.tensor(arrays.pop("tokens"))
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))  # pyright: ignore[reportCallIssue]
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    with torch.no_grad():
        np.save(path.with_suffix(".logits.npy"), model.eval()(tokens).logits.numpy())
    generate = model.generate  # pyright: ignore[reportAttributeAccessIssue]
    continued = [
        generate(prompt[None], max_new_tokens=24, do_sample=False, eos_token_id=None)
        for prompt in (tokens[0, :5], tokens[1, :20])
    ]
    np.save(path.with_suffix(".continued.npy"), torch.cat([c[:, -24:] for c in continued]).numpy())

x, scale = (torch.tensor(np.load(directory / "norm" / f"{name}.npy")) for name in ("x", "scale"))
norm = LlamaRMSNorm(x.shape[-1], eps=1e-6).to(torch.bfloat16)
norm.weight.data = scale.bfloat16()
np.save(directory / "norm" / "y.npy", norm(x.bfloat16()).float().detach().numpy())

logits = torch.tensor(np.load(directory / "nuclei" / "logits.npy"))
left = [
    TopPLogitsWarper(p)(None, TopKLogitsWarper(int(k))(None, logits))  # pyright: ignore[reportArgumentType]
    for k, p in np.load(directory / "nuclei" / "rules.npy")
]
np.save(directory / "nuclei" / "left.npy", torch.stack(left).numpy())
