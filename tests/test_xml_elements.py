"""Records of an XML dump, wherever they lie in it."""

import xml.etree.ElementTree as ET

import pytest

from helpers.sources import COMPRESS
from llama_jax.data.sources import xml_elements
from llama_jax.data.sources.lines import open_binary
from llama_jax.data.sources.source import Bad


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("chunk", [2, 7, 2**20])
def test_elements_are_found_wherever_a_chunk_ends(tmp_path, monkeypatch, encoding, ending, chunk):
    monkeypatch.setattr(xml_elements, "CHUNK", chunk)
    content = '<d><info n="ä"/>\n<page a="1>">é<page2/>x</page><page>2</page></d>'.encode(encoding)
    path = tmp_path / f"dump.xml{ending}"
    path.write_bytes(COMPRESS[ending](content) if ending else content)
    with open_binary(path) as file:
        found = list(xml_elements.elements(file, "page"))
    texts = [
        ET.tostring(element, "unicode").strip() for element in found if not isinstance(element, Bad)
    ]
    assert texts == ['<page a="1&gt;">é<page2 />x</page>', "<page>2</page>"]
