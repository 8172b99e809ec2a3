"""The seqio Task of each source, and the seqio Mixture of an experiment.

TensorFlow and seqio are imported inside functions: they take seconds and training needs neither.
"""

import functools
import hashlib
import json
import tempfile
import typing
from collections.abc import Iterable, Iterator

import numpy as np

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, store, tokenizer, words

if typing.TYPE_CHECKING:
    import seqio
    import tensorflow as tf

TF_SPACES = " \t\n\v\f\r"  # that tf.strings.strip strips
SIGNATURE = {"targets": "string"}  # of an example before it is tokenized


def register(data: DataConfig, name: str | None = None) -> "seqio.Mixture":
    """Return the Mixture of data.mixture; its Tasks give {"targets": BOS, tokens, EOS} a document.

    name: of the Mixture in seqio's registry, which refuses one that it has. Without one, it ends in
    a digest of what it stands for, as the names of Tasks do, so that other corpora and tokenizers
    can be registered beside these. Raises UserError for a missing file.
    """
    import seqio

    names = [(_register_task(data, source), rate) for source, rate in data.mixture]
    mixture = name or f"llama_{_short_hash(names)}"
    if name or mixture not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(mixture, names)
    return seqio.MixtureRegistry.get(mixture)


def task(data: DataConfig, source: str) -> "seqio.Task":
    """Return the Task of one source, registered if need be."""
    import seqio

    return seqio.TaskRegistry.get(_register_task(data, source))


def _register_task(data: DataConfig, source: str) -> str:
    import seqio

    model = tokenizer.read(data.tokenizer)
    parts = {
        f"{split}/{number}": part
        for split in store.SPLITS
        for number, part in enumerate(documents.parts(data, source, split))
    }
    model_hash = hashlib.sha256(model).hexdigest()
    name = f"{source}_{_short_hash([repr(parts), data.tokenizer, model_hash])}"
    if name in seqio.TaskRegistry.names():
        return name
    seqio.TaskRegistry.add(
        name,
        source=seqio.FileDataSource(  # pyright: ignore[reportArgumentType]
            functools.partial(
                _from_generator, lambda name: _examples(parts[name.decode()]), SIGNATURE
            ),
            {s: [name for name in parts if name.startswith(f"{s}/")] for s in store.SPLITS},
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


class Tokenized(typing.NamedTuple):
    """A document as the store takes it."""

    tokens: np.ndarray  # int32 [length]
    place: str  # FILE:ROW
    id: str


def tokenize(
    data: DataConfig, source: str, texts: Iterable[tuple[documents.Document, str]]
) -> Iterator[Tokenized]:
    """Yield documents of a source, of documents.read_places(), never cut, without the blank ones.

    Raises the UserError that reading them does. A SentencePiece model gives the tokens of the Task
    in a fraction of its time, and without TensorFlow, see words.py.
    """
    model = tokenizer.read(data.tokenizer)
    is_model = tokenizer.file_name(model) == tokenizer.MODEL
    encode = words.encoder(model, np.int32) if is_model else None
    if encode is None:
        yield from _tokenize_by_task(data, source, texts)
        return
    vocabulary = tokenizer.from_bytes(model, f"data.tokenizer: {data.tokenizer}")
    begin, end = (np.array([i], np.int32) for i in (vocabulary.bos_id, vocabulary.eos_ids[0]))
    for document, place in texts:
        if document.text.strip(TF_SPACES):
            tokens = np.concatenate([begin, encode(document.text), end])
            yield Tokenized(tokens, *(_name(text).decode() for text in (place, document.id)))


def _name(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _tokenize_by_task(
    data: DataConfig, source: str, texts: Iterable[tuple[documents.Document, str]]
) -> Iterator[Tokenized]:
    errors = []

    def examples(_: bytes) -> Iterator[dict[str, typing.Any]]:
        try:
            for document, place in texts:
                names = {"place": _name(place), "id": _name(document.id)}
                yield {"targets": document.text, **names}
        except UserError as e:  # TensorFlow would print the stack of one that gets out
            errors.append(e)

    features = {**SIGNATURE, "place": "string", "id": "string"}
    dataset = task(data, source).preprocess_precache(_from_generator(examples, features, ""))
    for found in dataset.as_numpy_iterator():
        yield Tokenized(found["targets"], found["place"].decode(), found["id"].decode())
    if errors:
        raise errors[0]


def _examples(part: documents.Part) -> Iterator[dict[str, str]]:
    for text, _ in documents.read(part):
        yield {"targets": text}


def _from_generator(
    examples: typing.Any, features: dict[str, str], name: "str | tf.Tensor"
) -> "tf.data.Dataset":
    import tensorflow as tf

    signature = {key: tf.TensorSpec((), dtype) for key, dtype in features.items()}
    return tf.data.Dataset.from_generator(examples, args=(name,), output_signature=signature)


def _drop_empty(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    import tensorflow as tf

    return dataset.filter(lambda example: tf.strings.strip(example["targets"]) != "")


def _prepend_bos(dataset: "tf.data.Dataset", output_features: typing.Any) -> "tf.data.Dataset":
    import tensorflow as tf

    bos = output_features["targets"].vocabulary.bos_id
    return dataset.map(
        lambda example: example | {"targets": tf.concat([[bos], example["targets"]], axis=0)},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
