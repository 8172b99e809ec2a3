"""README.md and docs/: the pages there are, and their links."""

import re

import pytest

from helpers.pages import PAGES
from helpers.paths import ROOT


def test_the_pages_are_these_and_the_readme_is_short():
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert {"README.md", *pages} == {*PAGES}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md", "tpu_setup/README.md")


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


def test_the_map_of_the_tests_has_each_file_once():
    named = re.findall(r"(?m)^\| `(\w+\.py)`", (ROOT / "tests/README.md").read_text())
    folders = ("tests", "tests/processes", "tests/helpers")
    files = [path.name for folder in folders for path in (ROOT / folder).glob("*.py")]
    assert sorted(named) == sorted({*files} - {"conftest.py", "golden_plans.py", "faults.py"})
