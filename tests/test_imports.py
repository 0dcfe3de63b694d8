"""Which way the imports point: the rules of docs/architecture.md, read off the source."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("anomaly_vae", "pipelines", "serving")

# A module of the library → those just below it. It may import them and whatever they stand on.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "client": {"errors"},
    "files": {"errors"},
    "provenance": set(),
    "columns": {"errors"},
    "arrow": {"columns"},
    "schema": {"arrow"},
    "calibration": {"errors"},
    "config": {"schema", "calibration"},
    "inference": {"config"},
    "splits": {"config"},
    "simulate": {"schema"},
    "phantoms": {"errors"},
    "encoding": {"config"},
    # images as they come, and as the model sees them
    "pixels": {"errors"},
    "jpeg_lossless": set(),
    "pictures_codecs": {"pixels", "jpeg_lossless"},
    "pictures_dicom": {"pictures_codecs"},
    "pictures_nifti": {"pixels"},
    "pictures_raster": {"pixels"},
    "pictures": {"pictures_dicom", "pictures_nifti", "pictures_raster"},
    "images": {"encoding", "pictures"},
    "modality": {"encoding", "images"},
    # scoring
    "scoring": {"modality"},
    "reasons": {"scoring"},
    "detector": {"reasons", "calibration"},
    "sketches": {"encoding"},
    "monitoring": {"sketches", "modality", "calibration"},
    "heatmaps": set(),
    "findings": {"detector", "heatmaps"},
    "bundle": {"detector", "heatmaps", "files", "monitoring", "provenance"},
    # thresholds
    "evidence": {"calibration", "columns"},
    "excess": {"calibration"},
    "tails": {"config", "evidence"},
    "sweeps": {"config", "evidence"},
    "thresholds": {"tails", "sweeps", "excess"},
    # models
    "networks": {"config"},
    "likelihoods": {"encoding"},
    "priors": {"likelihoods"},
    "vae": {"networks", "priors"},
    "autoencoder": {"vae"},
    "convolutions": {"images", "networks"},
    "hierarchical": {"convolutions", "autoencoder"},
    "contamination": {"hierarchical", "corruption"},
    "image_likelihoods": {"images", "likelihoods"},
    "corruption": {"images"},
    "build": {"contamination", "image_likelihoods", "corruption"},
    # fitting
    "process": set(),
    "gradients": {"corruption", "vae"},
    "training": {"gradients", "files", "process"},
    "export": {"build"},
    "image_scores": {"image_likelihoods", "vae"},
    "tracing": {"export", "image_scores"},
    "aggregated": {"gradients", "autoencoder"},
    "warm": {"bundle", "vae"},
    "fitting": {"aggregated", "inference", "training", "tracing", "warm"},
    "generation": {"build", "bundle"},
    "generation_tables": {"generation"},
    "generation_images": {"generation"},
    # on top
    "frames": {"modality"},
    "pyfunc": {"bundle", "frames"},
    "registry": {"bundle", "frames"},
    "bootstrap": set(),
    "evaluation": {"bootstrap", "detector", "splits"},
    "slices": {"evaluation"},
    "worth": {"bootstrap", "detector", "splits", "sweeps"},
    "uniformity": {"evaluation"},
    "leakage": {"bootstrap", "schema"},
    "report": {"leakage", "slices", "uniformity"},
    "comparison": {"slices"},
    "promotion": {"comparison", "config"},
    "parity": {"generation", "tracing", "promotion"},
    "succession": {"registry"},
    "plots": {"training", "report"},
    "estimator_base": {"fitting", "thresholds"},
    "estimators": {"estimator_base", "frames", "generation_tables"},
    "image_estimator": {"estimator_base", "generation_images"},
}

# All that `serving` may import of the library.
SERVED = {
    "errors",
    "columns",
    "encoding",
    "files",
    "schema",
    "modality",
    "pictures",
    "images",
    "scoring",
    "calibration",
    "reasons",
    "detector",
    "heatmaps",
    "findings",
    "sketches",
    "monitoring",
    "bundle",
    "registry",
}

# Libraries of training, and the modules that score without them, however late they are imported.
HEAVY = {"matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torch"}
# What reads and writes images; a process that scores tables has none of it.
PICTURES = {"PIL", "pydicom", "nibabel", "highdicom"}
LEAN = {
    "anomaly_vae.client",
    "anomaly_vae.errors",
    "anomaly_vae.columns",
    "anomaly_vae.arrow",
    "anomaly_vae.schema",
    "anomaly_vae.encoding",
    "anomaly_vae.pixels",
    "anomaly_vae.jpeg_lossless",
    "anomaly_vae.pictures",
    "anomaly_vae.pictures_codecs",
    "anomaly_vae.pictures_dicom",
    "anomaly_vae.pictures_nifti",
    "anomaly_vae.pictures_raster",
    "anomaly_vae.images",
    "anomaly_vae.modality",
    "anomaly_vae.scoring",
    "anomaly_vae.calibration",
    "anomaly_vae.detector",
    "anomaly_vae.heatmaps",
    "anomaly_vae.findings",
    "anomaly_vae.sketches",
    "anomaly_vae.monitoring",
    "anomaly_vae.bundle",
    "pipelines.cli",
    "pipelines.io",
    "pipelines.images",
    "pipelines.guarantee",
    "pipelines.score",
    "pipelines.score_images",
    "pipelines.dicom_out",
    "pipelines.discoveries",
}
MLFLOW = "anomaly_vae.registry"  # nothing else imports it, and it imports nothing else heavy


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(p): p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Every module that the source of `name` imports, inside functions too."""
    path = MODULES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = {alias.name for alias in node.names} - {"__version__"}  # that, anyone may ask
            members = {f"{origin}.{member}" for member in names}
            found |= {member if member in MODULES else origin for member in members}
    return found


def closure(name: str) -> set[str]:
    return {name}.union(*(closure(below) for below in BELOW[name]))


def allowed(importer: str, imported: str) -> bool:
    """Whether one module of ours may import another."""
    source, _, rest = importer.partition(".")
    target, _, member = imported.partition(".")
    match source, target:
        case "anomaly_vae", "anomaly_vae":
            return rest not in BELOW or member in closure(rest)
        case "serving", "anomaly_vae":
            return member in SERVED
        case "pipelines", "serving":
            return importer == "pipelines.cli"  # `anomaly-vae serve` starts it
        case "pipelines", _:
            return True
    return source == target


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    ours = {target for target in imports(name) if target.partition(".")[0] in PACKAGES}
    wrong = sorted(target for target in ours if not allowed(name, target))
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("name", MODULES)
def test_only_what_trains_imports_heavy_libraries(name):
    heavy = {target.partition(".")[0] for target in imports(name)} & HEAVY
    if name == MLFLOW:
        refused = HEAVY - {"mlflow"}
    elif name in LEAN or name.startswith("serving"):
        refused = HEAVY
    else:
        refused = {"mlflow"}
    wrong = sorted(heavy & refused)
    assert not wrong, f"{name} must not import {', '.join(wrong)}, not even inside a function"


def test_every_module_of_the_library_has_a_rule():
    library = {name.partition(".")[2] for name in MODULES if name.startswith("anomaly_vae.")}
    missing = sorted(library - BELOW.keys())
    assert not missing, f"say in BELOW what may be imported by: {', '.join(missing)}"


def test_every_rule_names_a_module():
    named = {*LEAN, MLFLOW, *("anomaly_vae." + name for name in BELOW.keys() | SERVED)}
    gone = sorted(named - MODULES.keys())
    assert not gone, f"rules for modules that do not exist; write them or drop their rules: {gone}"


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("serving.app", HEAVY | PICTURES | {"pyarrow"}),
        ("anomaly_vae.client", HEAVY | PICTURES | {"onnxruntime", "numpy", "pyarrow", "serving"}),
        ("pipelines.cli", HEAVY | PICTURES),
        ("anomaly_vae.bundle", HEAVY | PICTURES),
        ("pipelines.score_images", HEAVY | {"pydicom", "nibabel", "highdicom"}),
    ],
)
def test_a_fresh_process_loads_nothing_heavy(name, unwanted):
    code = f"import sys, {name}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    command = [sys.executable, "-c", code]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    loaded = sorted(unwanted & set(fresh.stdout.split()))
    assert not loaded, f"importing {name} loads {', '.join(loaded)}"
