"""The seqio Task of each source, and the seqio Mixture of an experiment.

TensorFlow and seqio are imported inside functions: they take seconds and training needs neither.
"""

import functools
import hashlib
import json
import tempfile
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

    model = tokenizer.read(data.tokenizer)
    files = {s: [str(f) for f in documents.files(data, source, s)] for s in store.SPLITS}
    model_hash = hashlib.sha256(model).hexdigest()
    name = f"{source}_{_short_hash([files, data.tokenizer, model_hash])}"
    if name in seqio.TaskRegistry.names():
        return name
    seqio.TaskRegistry.add(
        name,
        source=seqio.FileDataSource(
            functools.partial(_from_generator, _examples),
            files,  # pyright: ignore[reportArgumentType]
        ),
        preprocessors=[
            _drop_empty,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            _prepend_bos,
            seqio.preprocessors.append_eos,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"targets": seqio.Feature(_vocabulary(data, model))},
    )
    return name


def _vocabulary(data: DataConfig, model: bytes) -> "seqio.Vocabulary":
    """Return data.tokenizer, whose content is `model`, as seqio takes it."""
    import seqio
    import tensorflow as tf

    if tokenizer.file_name(model) == tokenizer.MODEL:
        return _sentencepiece(model)
    loaded = tokenizer.from_bytes(model, f"data.tokenizer: {data.tokenizer}")

    def encode(text: bytes) -> np.ndarray:
        return np.array(loaded.encode(text.decode()), np.int32)

    class Vocabulary(seqio.PassThroughVocabulary):
        """A tokenizer.json, which TensorFlow cannot read."""

        @property
        def bos_id(self):
            return loaded.bos_id

        def _encode_tf(self, s):
            return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    return Vocabulary(loaded.vocab_size, loaded.eos_ids[0])


@functools.cache
def _sentencepiece(model: bytes) -> "seqio.Vocabulary":
    """Return a SentencePiece model, which seqio reads from a disk, wherever data.tokenizer lies."""
    import seqio

    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model)
        file.flush()
        # Not use_fast_tokenizer: TF Text's fast one knows unigram models only, and is silently
        # wrong.
        vocabulary = seqio.SentencePieceVocabulary(file.name)
        assert vocabulary.sp_model == model  # which is read here
    return vocabulary


def _short_hash(value: typing.Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def tokenize(
    data: DataConfig, source: str, file: epath.Path, dtype: type[np.integer]
) -> tuple[list[np.ndarray], int]:
    """Return the tokens of each document of one shard file, and how many were blank and left out.

    The tokens are of `dtype`, [length], in the order of the file and never cut. Raises UserError
    naming file and line if the file cannot be read.
    """
    errors, num_texts = [], 0

    def examples(path: bytes) -> Iterator[dict[str, str]]:
        nonlocal num_texts
        try:
            for example in _examples(path):
                num_texts += 1
                yield example
        except UserError as e:  # TensorFlow would print the stack of one that gets out
            errors.append(e)

    dataset = task(data, source).preprocess_precache(_from_generator(examples, str(file)))
    found = [example["targets"].astype(dtype) for example in dataset.as_numpy_iterator()]
    if errors:
        raise errors[0]
    return found, num_texts - len(found)


def _examples(path: bytes) -> Iterator[dict[str, str]]:
    for text in documents.read(epath.Path(path.decode())):
        yield {"targets": text}


def _from_generator(examples: typing.Any, path: "str | tf.Tensor") -> "tf.data.Dataset":
    import tensorflow as tf

    signature = {"targets": tf.TensorSpec((), tf.string)}
    return tf.data.Dataset.from_generator(examples, args=(path,), output_signature=signature)


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
