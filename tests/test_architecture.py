"""What must hold of the packages as a whole; import-linter and ruff hold the import arrows."""

import ast
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


def test_every_estimator_file_is_exported():
    estimators = importlib.import_module("vipp_transforms.estimators")
    folder = pathlib.Path(next(iter(estimators.__path__)))
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


@pytest.mark.few(1)
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


# The public names of version 0.1.0: all import still, those that have another name with a warning.
BEFORE = {
    vipp: """
        ARM AnnealedBound Automatic BiasedEstimatorWarning CIWAE CUBO DisARM ELBO Enumerate
        Explanation FilteringBound FitResult ForwardKL GumbelSoftmax IWAE Learned
        LocalExpectation MIWAE MeasureValued Mix MovingAverage NonFiniteError Objective
        OneHotCategorical PIWAE Pathwise Program ReSTE Rebar ReinMax Relax Renyi
        ReweightedWakeSleep ScoreFunction SiteError SparseMixer StraightThrough TVO Trace
        VIMCO VarGrad constant expectation explain fit marginal normalize objective
        replicate sample value_and_grad with_estimators
    """,
    vipp_transforms: """
        ARM Automatic Axis Baseline DisARM Enumerate Estimator Expansion GumbelSoftmax Here
        Learned LocalExpectation Lot MeasureValued Mix MovingAverage Pathwise Plan ReSTE
        Rebar ReinMax Relax ScoreFunction SiteError Source SparseMixer StraightThrough Term
        constant estimate estimator lane_key plan run sample surrogate
    """,
}
RENAMED = {"Here": "Local", "Lot": "SiteInfo", "Rebar": "REBAR", "Relax": "RELAX"}


@pytest.mark.parametrize("package", BEFORE, ids=lambda package: package.__name__)
def test_public_names_of_the_version_before(package):
    for name in BEFORE[package].split():
        if name in package.__all__:
            assert getattr(package, name) is not None
            continue
        with pytest.warns(DeprecationWarning, match=f"is now {package.__name__}.{RENAMED[name]}"):
            assert getattr(package, name) is getattr(package, RENAMED[name])
    with pytest.raises(AttributeError, match="has no attribute 'Rebarr'"):
        _ = package.Rebarr


SOURCES = [
    path
    for folder in ("vipp", "transforms")
    for path in sorted((TESTS.parent / folder).rglob("*.py"))
]
PARSED = {path: ast.parse(path.read_text()) for path in SOURCES}
ENGINE = TESTS.parent / "transforms" / "vipp_transforms"
# Where a concrete estimator may be named: the policy of defaults, the list of those that are worth
# measuring, and lists of what is exported.
POLICY_AND_EXPORTS = {
    ENGINE / "choices.py", ENGINE / "__init__.py", TESTS.parent / "vipp" / "__init__.py",
    TESTS.parent / "vipp" / "diagnostics" / "candidates.py",
}  # fmt: skip


def test_files_and_functions_stay_short():
    for path, tree in PARSED.items():
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                described = len((ast.get_docstring(node, clean=False) or "").splitlines())
                length = node.end_lineno - node.lineno + 1 - described
                assert length <= 60, f"{path}: {node.name} has {length} lines and its docstring"


def test_internals_of_jax_are_met_in_one_file():
    for path in SOURCES:
        assert path.name == "_jax.py" or "jax._src" not in path.read_text(), path


def test_concrete_estimators_are_named_where_they_are_chosen_alone():
    """In code: docstrings and the fixes that errors propose may name them."""
    concrete = {
        name
        for name in vipp_transforms.__all__
        if isinstance(c := getattr(vipp_transforms, name), type)
        and issubclass(c, vipp_transforms.Estimator)
        and c is not vipp_transforms.Estimator
    }
    assert {"Pathwise", "REBAR", "Mix"} <= concrete
    for path, tree in PARSED.items():
        if path in POLICY_AND_EXPORTS or "estimators" in path.parts:
            continue
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert not used & concrete, f"{path} names {used & concrete}"
