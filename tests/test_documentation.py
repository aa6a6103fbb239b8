"""The Python in the README and the documentation runs, from top to bottom of each page."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.few(1)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page):
    text = page.read_text()
    namespace = {}
    for block in BLOCK.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        source = "\n" * first_line + block[1]  # a traceback shows the page's own line numbers
        exec(compile(source, str(page), "exec"), namespace)
