"""Check the direction of imports: the rules of docs/architecture.md, read from the source."""

import ast
import subprocess
import sys
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("anomaly_vae", "pipelines", "serving")

# From top to bottom. A unit may import any unit of a lower row, and none of its own row.
# A unit is a package (all its files), or a file where the row names one.
ROWS: dict[str, list[set[str]]] = {
    "anomaly_vae": [
        {"__init__"},
        {"estimators", "lifecycle"},
        {"generation", "plots", "pyfunc", "spark"},
        {"training"},
        {"export"},
        {"artifacts"},
        {"evaluation", "monitoring"},
        {"models", "scoring"},
        {"images", "calibration"},
        {"features", "review"},
        {"data"},
        {"config"},
        {"client", "simulation"},
        {"errors", "types", "messages", "files", "renames", "_version"},
        {"masking"},
    ],
    "serving": [
        {"server"},
        {"app"},
        {"console"},
        {"routes", "protocols"},
        {"middleware", "openapi"},
        {"registry"},
        {"review", "scoring"},
        {"http"},
        {"observability"},
        {"paths", "models"},
        {"settings", "problems"},
    ],
    "pipelines": [
        {"cli"},
        {"demo"},
        {"run"},
        {"training", "promotion"},
        {"reports"},
        {"batch", "generate", "review", "windows"},
        {"datasets", "registry"},
        {"console"},
    ],
}

# Libraries of training. Lean code never imports them, not even inside a function.
HEAVY = {"duckdb", "matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torch"}
# Libraries that read and write images; a process that scores tables loads none of them.
IMAGING = {"PIL", "pydicom", "nibabel", "highdicom"}
# What a service may import of the library, and all of it without the libraries of training.
LEAN = {
    "anomaly_vae._version",
    "anomaly_vae.artifacts",
    "anomaly_vae.calibration.conformal",
    "anomaly_vae.client",
    "anomaly_vae.data",
    "anomaly_vae.errors",
    "anomaly_vae.features",
    "anomaly_vae.files",
    "anomaly_vae.images",
    "anomaly_vae.masking",
    "anomaly_vae.messages",
    "anomaly_vae.monitoring",
    "anomaly_vae.renames",
    "anomaly_vae.review",
    "anomaly_vae.scoring",
    "anomaly_vae.types",
}
NOT_LEAN = {"anomaly_vae.data.dataframes", "anomaly_vae.features.offline"}
# Commands that read no more than scoring needs.
LEAN_FLOWS = {
    "pipelines.batch",
    "pipelines.cli",
    "pipelines.datasets.files",
    "pipelines.datasets.images.batches",
    "pipelines.datasets.images.files",
    "pipelines.datasets.images.listing",
    "pipelines.datasets.images.manifests",
    "pipelines.windows",
}
MLFLOW = "anomaly_vae.lifecycle.registry"  # the only importer of mlflow


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(p): p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}
FOLDERS = sorted(name for name, path in MODULES.items() if path.stem == "__init__")


@cache
def imported_names(name: str) -> tuple[tuple[str, str], ...]:
    """Every (module, name) that the source of a module imports, inside functions too."""
    path = MODULES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            found += [(origin, alias.name) for alias in node.names]
    return tuple(found)


def imports(name: str) -> set[str]:
    """Every module that the source of a module imports."""
    pairs = imported_names(name)
    return {f"{m}.{n}" if f"{m}.{n}" in MODULES else m for m, n in pairs}


def ours(name: str) -> set[str]:
    return {target for target in imports(name) if target.partition(".")[0] in PACKAGES}


def unit_of(name: str) -> tuple[str, str]:
    """The top package of a module, and its unit there."""
    package, _, rest = name.partition(".")
    return package, rest.partition(".")[0] or "__init__"


def row_of(name: str) -> int:
    package, unit = unit_of(name)
    return next(i for i, units in enumerate(ROWS[package]) if unit in units)


def is_within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def is_lean(name: str) -> bool:
    return is_within(name, LEAN) and not is_within(name, NOT_LEAN)


def is_allowed(importer: str, imported: str) -> bool:
    """Whether one module of ours may import another."""
    source, target = importer.partition(".")[0], imported.partition(".")[0]
    match source, target:
        case "serving", "anomaly_vae":
            return is_lean(imported) or imported == "anomaly_vae"
        case "pipelines", "serving":
            return importer == "pipelines.cli"  # `anomaly-vae serve` starts it
        case "pipelines", "anomaly_vae":
            return True
    if source != target:
        return False
    if imported in PACKAGES or unit_of(importer) == unit_of(imported):
        return True
    return row_of(importer) < row_of(imported)


def cycles() -> list[list[str]]:
    """Groups of files that import each other in a circle; faces of packages are left out."""
    files = [name for name in MODULES if name not in FOLDERS]
    reach = {name: ours(name) & set(files) for name in files}
    for middle in files:  # Warshall's closure
        for name in files:
            if middle in reach[name]:
                reach[name] = reach[name] | reach[middle]
    circular = [name for name in files if name in reach[name]]
    groups = {
        tuple(sorted(o for o in circular if o in reach[name] and name in reach[o]))
        for name in circular
    }
    return [list(group) for group in sorted(groups)]


def test_every_module_has_a_row():
    lost = []
    for name in MODULES:
        package, unit = unit_of(name)
        if name not in PACKAGES[1:] and not any(unit in units for units in ROWS[package]):
            lost.append(name)
    assert not lost, f"name these in ROWS: {', '.join(lost)}"


def test_every_rule_names_something():
    units = {unit_of(name) for name in MODULES}
    named = {(package, unit) for package, rows in ROWS.items() for row in rows for unit in row}
    gone = [".".join(one) for one in sorted(named - units)]
    gone += sorted((LEAN | NOT_LEAN | LEAN_FLOWS | {MLFLOW}) - MODULES.keys())
    assert not gone, f"rules for what does not exist: {', '.join(gone)}"


def test_imports_point_down():
    wrong = [
        f"{name} must not import {target}"
        for name in MODULES
        for target in sorted(ours(name))
        if not is_allowed(name, target)
    ]
    assert not wrong, "; ".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    assert not cycles()


def foreign_names(name):
    """Names with an underscore that a module imports from other packages."""
    package = name if name in FOLDERS else name.rpartition(".")[0]
    return [
        f"{name} imports {module}.{member}"
        for module, member in imported_names(name)
        if module.partition(".")[0] in PACKAGES
        and (member.startswith("_") or module.rpartition(".")[2].startswith("_"))
        and not member.startswith("__")
        and not module.startswith(f"{package}.")
        and module != package
    ]


def test_underscored_names_stay_in_their_package():
    wrong = [found for name in MODULES for found in foreign_names(name)]
    assert not wrong, f"names that belong to others: {'; '.join(wrong)}"


def assigned_names(name):
    """Names that a module assigns outside functions and classes."""
    body = ast.parse(MODULES[name].read_bytes()).body
    return {
        target.id
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


def test_every_package_lists_its_public_names():
    unlisted = [name for name in FOLDERS if "__all__" not in assigned_names(name)]
    assert not unlisted, f"__init__.py needs __all__ in {', '.join(unlisted)}"
    silent = [n for n in FOLDERS if not ast.get_docstring(ast.parse(MODULES[n].read_bytes()))]
    assert not silent, f"a docstring is missing in {', '.join(silent)}"


def unwanted_libraries(name):
    """Heavy libraries that a module imports, though its place forbids it."""
    heavy = {target.partition(".")[0] for target in imports(name)} & HEAVY
    if name == MLFLOW:
        refused = HEAVY - {"mlflow"}
    elif is_lean(name) or is_within(name, LEAN_FLOWS) or name.startswith("serving"):
        refused = HEAVY
    else:
        refused = {"mlflow"}
    return sorted(heavy & refused)


def test_only_training_imports_heavy_libraries():
    wrong = [
        f"{name}: {', '.join(found)}" for name in MODULES if (found := unwanted_libraries(name))
    ]
    assert not wrong, f"not even inside a function may these be imported: {'; '.join(wrong)}"


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("serving.app", HEAVY | IMAGING | {"pyarrow", "sqlalchemy"}),
        ("anomaly_vae.client", HEAVY | IMAGING | {"onnxruntime", "numpy", "pyarrow", "serving"}),
        ("anomaly_vae.artifacts, pipelines.cli", HEAVY | IMAGING),
        (
            "anomaly_vae.review.store, anomaly_vae.review.case_store",
            HEAVY | IMAGING | {"pyarrow", "starlette", "httpx2"},
        ),
        ("pipelines.batch.images", HEAVY | {"pydicom", "nibabel", "highdicom"}),
    ],
)
def test_a_fresh_process_loads_nothing_heavy(name, unwanted):
    code = f"import sys, {name}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    command = [sys.executable, "-c", code]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    loaded = sorted(unwanted & set(fresh.stdout.split()))
    assert not loaded, f"importing {name} loads {', '.join(loaded)}"


# Modules that need no test file of their own, each with its reason.
UNTESTED = {"anomaly_vae._version": "it holds one number, which the build writes"}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imports_of_tests(path: Path) -> set[str]:
    """Every module under tests/ that a file there imports, inside functions too."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return {target for target in found if target.partition(".")[0] == "tests"}


def mirrored_path(name):
    """Path of the tests of a module."""
    path = MODULES[name].relative_to(ROOT)
    return Path("tests") / path.with_name(f"test_{path.name}")


def test_every_module_has_a_test_file_at_the_mirrored_path():
    untested = [
        str(mirrored_path(name))
        for name in MODULES
        if name not in FOLDERS and name not in UNTESTED and name.split(".")[0] != "pipelines"
        if not (ROOT / mirrored_path(name)).is_file()
    ]
    assert not untested, f"missing: {', '.join(untested)}"


def test_only_what_exists_may_go_without_tests():
    assert set(UNTESTED) <= MODULES.keys()


def test_tests_share_helpers_through_their_support_package_only():
    wrong = [
        f"{path.name} imports {name}"
        for path in TESTS
        for name in sorted(imports_of_tests(path))
        if not is_within(name, {"tests.support"})
    ]
    assert not wrong, f"{'; '.join(wrong)}; move what they share to support"
