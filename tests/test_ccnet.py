"""CCNet's normalisation against its published examples, and its own reading of WET."""

import math

import pytest

from helpers import dumps
from helpers.paths import SHARED
from llama_jax.data.sources import ccnet, commoncrawl
from llama_jax.data.sources.source import Bad, Document

# From the tests of facebookresearch/cc_net.
MARKS = "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％"


def test_paragraphs_are_normalised_as_published():
    assert ccnet.normalised("０２３´∶：\x10 | ;012 hèllo") == "000 | ;000 hèllo"
    assert ccnet.normalised("  Hello, World\t") == "hello, world"
    assert ccnet.normalised(MARKS.replace("１", "")) == ""


def test_text_is_made_plain_for_the_language_model_as_published():
    assert ccnet.plain("０２３４５６７８９ | 0123456789") == "000000000 | 0000000000"
    # "１" is a digit first.
    assert ccnet.plain(MARKS) == ',.,"""""0""""\'::?!();- - . ~\'...-<>[]%'
    assert ccnet.plain("Ça va\nbien?") == "ca vabien?"  # a line break is a control character


class Pieces:
    def encode(self, text, out_type):
        return text.split()


class Model:
    """Every word has a probability of one in a hundred, and the end of the sentence one in ten."""

    def score(self, text):
        return -2.0 * len(text.split()) - 1.0


def test_perplexity_is_by_pieces_and_the_end():
    found = ccnet.perplexity("A b\nc", Pieces(), Model())  # "a", "bc"
    assert found == round(10 ** ((2 * 2 + 1) / 3), 1) and math.isclose(found, 46.4)


def test_cutoffs_of_english_are_those_of_ccnet():
    path = SHARED / "crawl/ccnet_perplexity_cutoff.csv"
    if not path.exists():
        pytest.skip("CCNet's cut-offs are not here (../shared/data/crawl)")
    assert commoncrawl.read_cutoffs(path, "en") == commoncrawl.CUTOFFS


def test_wet_is_read_as_ccnet_reads_it():
    path = SHARED / "crawl/ccnet_sample_wet.txt"
    if not path.exists():
        pytest.skip("CCNet's sample of WET is not here (../shared/data/crawl)")
    read = [*commoncrawl.read(path)]
    assert all(isinstance(document, Document) for document in read)
    documents = [document for document in read if isinstance(document, Document)]
    assert [(d.url, d.date, d.provenance["title"]) for d in documents] == [
        ("http://sample_english.com", "2019-03-18T00:00:00Z", "Famous Mark Twain Quotes"),
        ("http://sample_chinese.zh", "2019-03-18T00:00:01Z", "馬克·吐溫名言"),
        ("http://sample_russian.ru", "2019-03-18T00:00:02Z", "Цитаты знаменитого Марка Твена"),
    ]
    assert documents[0].text == (
        "Don't part with your illusions. When they are gone you may still exist, but you have "
        "ceased to live.\nEducation: that which reveals to the wise, and conceals from the stupid, "
        "the vast limits of their knowledge.\nFacts are stubborn things, but statistics are more "
        "pliable.\nFiction is obliged to stick to possibilities. Truth isn't."
    )


def test_a_file_without_a_record_is_bad(tmp_path):
    path = tmp_path / "x.warc.wet.gz"
    dumps.c4(path, ["text"])
    assert [*commoncrawl.read(path)] == [Bad("line 1", "the file has no WARC/1.0 record")]
