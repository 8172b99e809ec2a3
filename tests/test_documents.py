"""The corpus: sources, splits and lines, and the seqio mixture over them."""

import dataclasses

import pytest

from helpers.stores import BOS, EOS, all_tokens, write_jsonl
from llama_jax.config import LLAMA_MIXTURE, DataConfig, UserError
from llama_jax.data import documents, store, tasks, tokenizer
from llama_jax.data.prepare import prepare

# ---- Corpus

GOOD = b'{"text": "good"}\n'

BAD_LINES = {
    "broken JSON": b'{"text": "bad\n',
    "no text": b'{"content": "bad"}\n',
    "text of another type": b'{"text": 3}\n',
    "no object": b'"text"\n',
    "not UTF-8": b'{"text": "\xff\xfe"}\n',
    "half a surrogate pair": b'{"text": "\\ud83e"}\n',
}


def little_corpus(tiny_data, tmp_path, train: bytes) -> DataConfig:
    (tmp_path / "corpus/essays").mkdir(parents=True)
    (tmp_path / "corpus/essays/train.jsonl").write_bytes(train)
    (tmp_path / "corpus/essays/validation.jsonl").write_bytes(GOOD)
    return dataclasses.replace(
        tiny_data,
        mixture=(("essays", 1.0),),
        corpus=str(tmp_path / "corpus"),
        store=str(tmp_path / "store"),
    )


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_line_is_an_error_with_file_and_line(tiny_data, tmp_path, bad):
    data = little_corpus(tiny_data, tmp_path, GOOD * 2 + BAD_LINES[bad] + GOOD)
    with pytest.raises(UserError, match=r"corpus/essays/train.jsonl:3: expected") as error:
        prepare(data, num_workers=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store/essays/train.json").exists()


def test_truncated_gzip_is_an_error(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, GOOD)
    path = tmp_path / "corpus/essays/train-1.jsonl.gz"
    write_jsonl(path, ["good"] * 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"essays/train-1.jsonl.gz: cannot be read after line"):
        prepare(data, num_workers=1)


def test_empty_documents_are_dropped(tiny_data, tmp_path):
    data = little_corpus(tiny_data, tmp_path, b'{"text": ""}\n' + GOOD + b'{"text": " \\n"}\n')
    (tmp_path / "corpus/essays/train-1.jsonl").write_bytes(b"")
    for _ in range(2):  # the second time from what is there
        prepare(data, num_workers=1)
    tokens = [BOS, *tokenizer.load(data.tokenizer).encode("good"), EOS]
    assert all_tokens(data, "essays", "train").tolist() == tokens


def test_missing_source_and_missing_split_are_errors(tiny_data, tmp_path):
    unknown = dataclasses.replace(tiny_data, mixture=(("nonesuch", 1.0),))
    with pytest.raises(UserError, match="data.mixture: source 'nonesuch' has no directory"):
        prepare(unknown, num_workers=1)
    data = little_corpus(tiny_data, tmp_path, GOOD)
    (tmp_path / "corpus/essays/validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"essays has no validation\*.jsonl"):
        prepare(data, num_workers=1)


def test_embedded_corpus_has_every_source_of_the_paper_and_separate_splits():
    data = DataConfig(store="", batch_size=1)
    for source, _ in LLAMA_MIXTURE:
        train, validation = (
            {text for path in documents.files(data, source, split) for text in documents.read(path)}
            for split in store.SPLITS
        )
        assert train and validation
        assert not train & validation


def test_mixture_is_an_ordinary_seqio_mixture(tiny_data):
    import seqio

    mixture = tasks.register(tiny_data)
    assert tasks.register(tiny_data) is mixture
    assert seqio.get_mixture_or_task(mixture.name) is mixture
    dataset = seqio.get_dataset(
        mixture.name,
        task_feature_lengths={"targets": 32},
        dataset_split="train",
        feature_converter=seqio.DecoderFeatureConverter(pack=True),
    )
    batch = next(dataset.as_numpy_iterator())
    assert batch["decoder_target_tokens"][0] == BOS

    more = dataclasses.replace(tiny_data, mixture=(("github", 1.0),))
    assert tasks.register(more) is not mixture
    assert tasks.register(more).tasks[0] in mixture.tasks
