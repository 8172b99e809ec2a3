"""The seqio Task of each source, and the seqio Mixture of an experiment.

TensorFlow and seqio are imported inside functions: they take seconds and training needs neither.
"""

import functools
import hashlib
import json
import typing
from collections.abc import Iterator

import numpy as np
from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, store, tokenizer

if typing.TYPE_CHECKING:
    import seqio
    import tensorflow as tf


def register(data: DataConfig) -> "seqio.Mixture":
    """Return the Mixture of data.mixture; its Tasks give {"targets": BOS, tokens, EOS} a document.

    A name in seqio's registries ends in a digest of what it stands for, so that other corpora and
    tokenizers can be registered beside this one. Raises UserError for a missing file.
    """
    import seqio

    names = [(_register_task(data, source), rate) for source, rate in data.mixture]
    mixture = f"llama_{_short_hash(names)}"
    if mixture not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(mixture, names)
    return seqio.MixtureRegistry.get(mixture)


def task(data: DataConfig, source: str) -> "seqio.Task":
    """Return the Task of one source, registered if need be."""
    import seqio

    return seqio.TaskRegistry.get(_register_task(data, source))


def _register_task(data: DataConfig, source: str) -> str:
    import seqio

    model = tokenizer.find(data.tokenizer)
    files = {s: [str(f) for f in documents.files(data, source, s)] for s in store.SPLITS}
    model_hash = hashlib.sha256(model.read_bytes()).hexdigest()
    name = f"{source}_{_short_hash([files, str(model), model_hash])}"
    if name in seqio.TaskRegistry.names():
        return name
    # Not use_fast_tokenizer: TF Text's fast one knows unigram models only, and is silently wrong.
    vocabulary = seqio.SentencePieceVocabulary(str(model))
    seqio.TaskRegistry.add(
        name,
        source=seqio.FileDataSource(_read_file, files),  # pyright: ignore[reportArgumentType]
        preprocessors=[
            _drop_empty,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            _prepend_bos,
            seqio.preprocessors.append_eos,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"targets": seqio.Feature(vocabulary)},
    )
    return name


def _short_hash(value: typing.Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def tokenize(data: DataConfig, source: str, split: str, shard: int) -> Iterator[np.ndarray]:
    """Yield the tokens of each document of one shard file, in order, int32 [length], never cut.

    Raises UserError naming file and line if the file cannot be read.
    """
    import seqio
    import tensorflow as tf

    source_task = task(data, source)
    shards = seqio.ShardInfo(shard, len(source_task.source.list_shards(split)))
    dataset = source_task.source.get_dataset(split, shuffle=False, shard_info=shards)
    try:
        for example in source_task.preprocess_precache(dataset).as_numpy_iterator():
            yield example["targets"]
    except tf.errors.OpError:
        if _reader_errors:
            raise _reader_errors.pop() from None
        raise


# tf.data turns a Python exception into text; the reader keeps the exception here for tokenize().
_reader_errors: list[UserError] = []


def _examples(path: bytes) -> Iterator[dict[str, str]]:
    try:
        for text in documents.read(epath.Path(path.decode())):
            yield {"targets": text}
    except UserError as e:
        _reader_errors.append(e)
        raise


def _read_file(path: "tf.Tensor") -> "tf.data.Dataset":
    import tensorflow as tf

    signature = {"targets": tf.TensorSpec((), tf.string)}
    return tf.data.Dataset.from_generator(_examples, args=(path,), output_signature=signature)


def _drop_empty(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    import tensorflow as tf

    return dataset.filter(lambda example: tf.strings.strip(example["targets"]) != "")


def _prepend_bos(dataset: "tf.data.Dataset", output_features: typing.Any) -> "tf.data.Dataset":
    import tensorflow as tf

    bos = output_features["targets"].vocabulary.bos_id
    return dataset.map(
        lambda example: {"targets": tf.concat([[bos], example["targets"]], axis=0)},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
