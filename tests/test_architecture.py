"""What must hold of the packages as a whole; import-linter and ruff hold the import arrows."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import vipp
import vipp_transforms

TESTS = pathlib.Path(__file__).parent
API_PAGE = TESTS.parent / "docs" / "api.rst"


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )


def test_every_public_name_has_a_docs_entry():
    documented = re.findall(
        r"^\.\. auto\w+:: vipp\.(\w+)$", API_PAGE.read_text(), flags=re.MULTILINE
    )
    assert sorted(documented) == sorted(vipp.__all__)


@pytest.mark.parametrize("package", [vipp, vipp_transforms])
def test_every_public_name_exists_and_has_a_docstring(package):
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__, f"{package.__name__}.{name} has no docstring"


def test_every_estimator_file_is_exported_and_in_the_contract_table():
    estimators = importlib.import_module("vipp_transforms.estimators")
    folder = pathlib.Path(next(iter(estimators.__path__)))
    contract = (TESTS / "test_transforms" / "test_contract.py").read_text()
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    for module in sorted(name for name in modules if not name.startswith("_")):
        qualified = f"vipp_transforms.estimators.{module}"
        exports = [
            name
            for name in estimators.__all__
            if getattr(getattr(estimators, name), "__module__", None) == qualified
        ]
        assert exports, f"{module}.py exports nothing through vipp_transforms.estimators"
        for name in exports:
            assert name in vipp.__all__, f"{name} is not exported by vipp"
            assert re.search(rf"\b{name}\b", contract), f"{name} has no row in test_contract.py"


@pytest.mark.parametrize(
    "code, starts", [("import vipp", False), ("import vipp, jax.numpy as jnp; jnp.zeros(1)", True)]
)
def test_import_starts_no_backend(code, starts):
    # a platform that does not exist: whatever starts a backend fails
    result = run(code, JAX_PLATFORMS="no_such_platform")
    assert (result.returncode != 0) == starts, result.stderr


def test_the_engine_imports_without_the_language():
    result = run(
        "import sys, vipp_transforms;"
        "sys.exit(', '.join({'numpyro', 'optax', 'flax', 'vipp'} & set(sys.modules)) or 0)"
    )
    assert result.returncode == 0, result.stderr
