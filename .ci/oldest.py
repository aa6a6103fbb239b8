"""Print `name==floor` for every core dependency: its lower bound in pyproject.toml."""

import pathlib
import re
import tomllib

pyproject = pathlib.Path(__file__).parent.parent / "pyproject.toml"
for requirement in tomllib.loads(pyproject.read_text())["project"]["dependencies"]:
    match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement)
    if match is None:
        raise SystemExit(f"core dependency without a lower bound: {requirement!r}")
    print(f"{match[1]}=={match[2]}")
    if match[1] == "jax":
        print(f"jaxlib=={match[2]}")
