"""Every number a run depends on, as frozen dataclasses: an experiment file returns an Experiment.

Nothing else in the package reads flags, environment variables or files for its settings.
"""

import dataclasses


class UserError(ValueError):
    """Something the user can mend. The command line prints it as one line and exits with 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and numerics of one decoder (paper section 2.2; defaults are the paper's)."""

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None  # None: one per query head, as in the paper
    mlp_dim_override: int | None = None  # None: the paper's rule, see mlp_dim
    vocab_size: int = 0  # 0: as many as data.tokenizer has, as soon as an experiment is loaded
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False
    init_std: float = 0.02  # the paper does not state its initialisation; 0.02 is OpenLLaMA's
    compute_dtype: str = "bfloat16"  # one of COMPUTE_DTYPES; parameters are always float32

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def mlp_dim(self) -> int:
        """Return the width of the SwiGLU: 2/3 of 4 * embed_dim, rounded up to a multiple of 256."""
        if self.mlp_dim_override is not None:
            return self.mlp_dim_override
        return -(-(8 * self.embed_dim // 3) // 256) * 256


LOSS_CHUNK = 1024  # tokens per device whose logits exist at a time
COMPUTE_DTYPES = ("bfloat16", "float32")
SPIKE_ACTIONS = ("stop", "skip", "roll_back")  # see guards/spikes.py
ATTENTION_KERNELS = ("reference", "splash", "cudnn")  # any device; TPU; NVIDIA GPU


@dataclasses.dataclass(frozen=True)
class Remat:
    """The outputs in a block, by their names in model.py, that the backward pass need not compute
    again: kept in device memory, or sent to the host's and fetched back."""

    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()


# The paper, section 2.4: save what is expensive to compute, such as the outputs of linear layers.
_LINEAR = ("query", "key", "value", "out", "gate", "up")
REMAT_POLICIES = {
    "nothing": Remat(),  # but the block's input, called residual
    "qkv": Remat(save=("query", "key", "value", "context")),
    "qkv_offload": Remat(save=("query", "key", "value"), offload=("context", "residual")),
    "offload": Remat(offload=("query", "key", "value", "context", "residual")),
    "linear": Remat(save=(*_LINEAR, "context")),
    "linear_offload": Remat(save=_LINEAR, offload=("context", "residual")),
    "mlp_offload": Remat(
        save=("gate", "up"), offload=("query", "key", "value", "out", "context", "residual")
    ),
    "everything": Remat(),  # no rematerialisation at all, see model.py
}

# Options of libtpu for execution.compiler_options; the effect of each is in experiments/LOG.md.
ASYNC_GATHERS = (
    "xla_enable_async_all_gather",
    "true",
    "v4 gathers the next weights while it multiplies by these; v5p's gathers stay synchronous",
)
WHOLE_LOOPS = (
    "xla_tpu_pipeline_memory_host_transfers",
    "false",
    "with offloading, the pipeliner peels a layer off the loop and copies all that is saved",
)

# The paper's sizes (Table 2). norm_eps is the released params.json's: 1e-5 for 65B only.
LLAMA_7B = ModelConfig(num_layers=32, embed_dim=4096, num_heads=32, vocab_size=32_000)
LLAMA_13B = ModelConfig(num_layers=40, embed_dim=5120, num_heads=40, vocab_size=32_000)
LLAMA_33B = ModelConfig(num_layers=60, embed_dim=6656, num_heads=52, vocab_size=32_000)
LLAMA_65B = ModelConfig(
    num_layers=80, embed_dim=8192, num_heads=64, vocab_size=32_000, norm_eps=1e-5
)
# Smaller members of the family, for sweeps and benchmarks. 15M and 110M follow llama2.c's shapes,
# which count one (tied) embedding; 1B is TinyLlama's width and depth with one KV head per head.
LLAMA_15M = ModelConfig(num_layers=6, embed_dim=288, num_heads=6, vocab_size=32_000)
LLAMA_110M = ModelConfig(num_layers=12, embed_dim=768, num_heads=12, vocab_size=32_000)
LLAMA_1B = ModelConfig(num_layers=22, embed_dim=2048, num_heads=32, vocab_size=32_000)


# Share of the training tokens that comes from each source (paper Table 1).
LLAMA_MIXTURE = (
    ("commoncrawl", 0.67),
    ("c4", 0.15),
    ("github", 0.045),
    ("wikipedia", 0.045),
    ("books", 0.045),
    ("arxiv", 0.025),
    ("stackexchange", 0.02),
)


BATCH_KEYS = ("tokens", "targets", "segments", "positions")  # the arrays of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and in which order: global batch n depends on these fields and on n alone."""

    mixture: tuple[tuple[str, float], ...] = LLAMA_MIXTURE  # (seqio Task, share of tokens)
    corpus: str = "embedded"  # or a directory: CORPUS/SOURCE/{train,validation}*
    # Sources that lie elsewhere, or with their text in another column than "text": (source, where,
    # column), see docs/data.md.
    sources: tuple[tuple[str, str, str], ...] = ()
    held_out: float = 0.001  # share of the documents of a source that has no validation files
    tokenizer: str = "embedded"  # or the path of a tokenizer.model or tokenizer.json
    store: str  # directory of the token store that `llama-jax cache` writes
    seq_len: int = 2048  # tokens in a row
    batch_size: int  # rows in a step, over all devices and micro-batches
    seed: int = 0
    attend_across_documents: bool = False  # True: a row is one segment, as in the paper's replicas
    damaged_rows: int = 0  # that each process may leave out, where the store cannot be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and a cosine to a tenth of the peak (paper section 2.3)."""

    peak_lr: float
    warmup_steps: int = 2_000
    final_lr_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8  # the paper does not state it; this is optax's and PyTorch's
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = (
        "norm",
    )  # a parameter with one of these in its path is not decayed
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, and from which initial weights."""

    num_steps: int
    gradient_dtype: str = "float32"  # one of COMPUTE_DTYPES: of the sum over micro-batches
    seed: int = 0  # of the initial weights
    # One of SPIKE_ACTIONS: what is done about a loss that is not finite, or a spike.
    on_spike: str = "stop"
    # A loss so many standard deviations above the mean of those before it is a spike; None: none
    # is. OLMo 2 (arXiv 2501.00656) takes 6.
    spike_deviations: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways each mesh axis splits the devices; their product is the number of devices.

    An fsdp of 0 is as many as replica and tensor leave.
    """

    replica: int = 1  # batch split, parameters copied
    fsdp: int = 1  # batch and parameters split
    ring: int = 1  # of fsdp, so many devices sum gradients in hops, see reduce_scatter
    tensor: int = 1  # heads, MLP width and vocabulary split
    sequence_parallel: bool = False  # between blocks, split activations in time over `tensor`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a step is computed. No result depends on it but by rounding."""

    slice: str | None = None  # what it is laid out for, as `llama-jax plan` names it: "v5p:4x4x4"
    mesh: MeshConfig = MeshConfig(fsdp=0)  # the devices that there are
    micro_batches: int = 1  # the batch is cut into so many, whose gradients are added up
    remat: str = "nothing"  # one of REMAT_POLICIES
    attention: str = "reference"  # one of ATTENTION_KERNELS
    attention_block: int = 512  # queries and keys in a tile of the splash kernel
    # Of libtpu or XLA, for the train step: (name, value, the reason why).
    compiler_options: tuple[tuple[str, str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What is evaluated, kept and logged on the way."""

    eval_every: int  # steps
    eval_rows: int  # held-out rows per source, at the most
    checkpoint_every: int  # steps
    keep_last: int = 3  # checkpoints
    keep_every: int | None = None  # also keep every checkpoint at a multiple of this many steps
    # A directory on each host's own disk, where a run whose processes died goes on from, see
    # run/local_checkpoints.py; and steps. None: there are checkpoints in the workdir only.
    local_dir: str | None = None
    local_every: int | None = None
    hang_seconds: float = 600.0  # of a step, an evaluation or the start of a save: it hangs
    wandb_project: str | None = None  # also log to this Weights & Biases project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is computed (model, data, optimizer, run), and apart from it how, and what is kept.

    All but the last two is the experiment's identity: a run is refused other values. The last two
    may change whenever a run goes on.
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    run: RunConfig
    # Weights to start from, with a new optimizer: a run, WORKDIR[@STEP], or what `llama-jax
    # import` takes. None: random ones, of run.seed.
    init: str | None = None
    execution: Execution = Execution()
    upkeep: Upkeep


# What the paper's four runs share (section 2.3), where they are run, and what is kept of them.
PAPER_DATA = DataConfig(
    corpus="gs://BUCKET/corpus",
    tokenizer="gs://BUCKET/tokenizer.model",
    store="gs://BUCKET/store",
    seq_len=2048,
    batch_size=2048,  # rows: 4M tokens
)
PAPER_UPKEEP = Upkeep(eval_every=1_000, eval_rows=512, checkpoint_every=1_000, keep_every=10_000)


def on_tpu(mesh: MeshConfig, micro_batches: int, remat: str) -> Execution:
    """Return an execution by the TPU's own kernel and with both compiler options."""
    return Execution(
        mesh=mesh,
        micro_batches=micro_batches,
        remat=remat,
        attention="splash",
        compiler_options=(ASYNC_GATHERS, WHOLE_LOOPS),
    )
