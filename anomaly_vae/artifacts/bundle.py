"""Read and write bundles: folders that hold a trained model for registration and scoring.

    manifest.json            format, schema, encoding, configuration, data, calibration, evaluation
                             and a summary of the calibration rows
    graph.onnx               the scoring graph
    weights.safetensors      the weights, for the graph and for generation
    calibration.safetensors  the sorted calibration scores, once calibrated
    counts.safetensors       how often training rows had each value of the categorical columns with
                             frequency bands, by hash; only if there are such columns
    unusual.safetensors      the test for input unlike the training rows; only if there is one
    SHA256SUMS               digests of the other files; its own digest identifies the bundle

Nothing is pickled. A bundle with a missing, extra or altered file is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomaly_vae.artifacts.provenance import code_version
from anomaly_vae.calibration.conformal import Calibration, Groups, Scores
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.errors import BundleError, DataError, NotCalibratedError
from anomaly_vae.files import atomic_folder, strict_json
from anomaly_vae.monitoring.cycles import Cycle
from anomaly_vae.monitoring.exchangeability import Monitor, Reference
from anomaly_vae.renames import rename_config, rename_reading
from anomaly_vae.scoring.detector import Detector
from anomaly_vae.scoring.modality import modality
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.scoring.unusual import UnusualTest

if TYPE_CHECKING:
    from anomaly_vae.images.heatmaps import Scale
    from anomaly_vae.scoring.localization import LocalizationTest

FORMAT = 3
"""Format version of the manifests that this version writes."""
MANIFEST, GRAPH, WEIGHTS = "manifest.json", "graph.onnx", "weights.safetensors"
CALIBRATION, SUMS = "calibration.safetensors", "SHA256SUMS"
COUNTS, UNUSUAL = "counts.safetensors", "unusual.safetensors"
SUMS_LINE = re.compile(rb"([0-9a-f]{64})  (\w[\w.-]*)\n")
"""Pattern of a line of ``SHA256SUMS``: a digest and a name without a path."""
KEYS = (
    "format", "code_version", "kind", "name", "unit", "schema", "encoding", "config", "data",
    "training", "calibration", "evaluation", "reference",
)  # fmt: skip
"""Keys that every manifest of this format has."""
KEYS_BY_KIND = {"image": ("heat_scale",)}
"""Keys that manifests of a kind of model have in addition."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The files of a trained model in memory, with or without a calibration.

    >>> import numpy as np
    >>> import pandas as pd
    >>> from anomaly_vae import TabularVAEDetector
    >>> rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    >>> bundle = TabularVAEDetector(epochs=1, random_state=0).fit(rows).bundle_
    >>> bundle.manifest["kind"], sorted(bundle.files)[:2], len(bundle.digest)
    ('tabular', ['calibration.safetensors', 'graph.onnx'], 64)
    >>> batch = bundle.scorer.schema.from_records([bundle.example])
    >>> bundle.detector.detect(batch).is_anomaly.tolist()
    [False]
    """

    manifest: Mapping[str, Any]
    graph: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    manifest_file: bytes | None = field(default=None, repr=False)
    """Manifest file as it was read; None for a bundle that was made in memory."""
    value_counts: bytes | None = field(default=None, repr=False)
    """Counts of the values of columns with frequency bands; None without such columns."""
    cycle: Cycle | None = field(default=None, repr=False)
    """Variation of the calibration rows over time, for the monitor."""
    unusual_file: bytes | None = field(default=None, repr=False)
    """Test for unusual rows; None if there is none."""
    image_groups: Mapping[str, Calibration] = field(default_factory=dict, repr=False)
    """Calibrations of the highest score of a group of images, such as a patient's or a series', by
    the kind of group."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the files, because scoring sessions cannot be pickled."""
        return from_files, (self.files,)

    @cached_property
    def scorer(self) -> Scorer:
        """Scoring kernel with this bundle's graph.

        Raises:
            BundleError: the counts of the values of a column are absent or damaged.
        """
        schema, encoding = modality(self.manifest["kind"])
        restored = encoding.from_json(self.manifest["encoding"])
        if isinstance(restored, TabularEncoding):
            restored = self._with_counts(restored)
        read = schema.from_json(self.manifest["schema"])
        return Scorer(read, restored, self.graph, self.weights)

    def _with_counts(self, encoding: TabularEncoding) -> TabularEncoding:
        try:
            tensors = load_tensors(self.value_counts) if self.value_counts else {}
            return encoding.with_counts(tensors)
        except (DataError, SafetensorError) as error:
            reason = f"{COUNTS} cannot be read: {error}; make the bundle anew"
            raise BundleError(f"bundle '{self.manifest['name']}': {reason}") from None

    @cached_property
    def detector(self) -> Detector:
        """Scorer with its calibration.

        Raises:
            NotCalibratedError: the bundle has no calibration yet.
        """
        if self.calibration is None:
            raise NotCalibratedError(
                f"model '{self.manifest['name']}' has no threshold yet; "
                "run: anomaly-vae calibrate CONFIG --model URI"
            )
        return Detector(self.scorer, self.calibration, self.manifest["unit"], self.unusual)

    @cached_property
    def unusual(self) -> UnusualTest | None:
        """Test for rows that are unlike the training rows; None if there is none.

        Raises:
            BundleError: its file is damaged.
        """
        if self.unusual_file is None:
            return None
        try:
            tensors = load_tensors(self.unusual_file)
            return UnusualTest.restore(self.manifest["unusual"], tensors, self.scorer.encoding)
        except (KeyError, SafetensorError):
            message = f"bundle '{self.manifest['name']}': {UNUSUAL} cannot be read; make it anew"
            raise BundleError(message) from None

    @cached_property
    def monitor(self) -> Monitor:
        """Monitor that tests whether rows still look like the calibration rows.

        Raises:
            NotCalibratedError: the bundle has no calibration yet.
        """
        calibration = self.detector.calibration
        reference = Reference.from_json(self.manifest["reference"], self.cycle)
        return Monitor(calibration, self.scorer.encoding, reference)

    @cached_property
    def heat_scale(self) -> Scale:
        """Scale of anomaly map values; image models only."""
        from anomaly_vae.images.heatmaps import Scale

        scale = Scale.from_json(self.manifest["heat_scale"])
        return replace(scale, localizes=self.localizes, expects=self.draws)

    @property
    def map_scale(self) -> Scale | None:
        """Scale of anomaly map values; None for tables."""
        return self.heat_scale if "heat_scale" in self.manifest else None

    @cached_property
    def localization(self) -> LocalizationTest | None:
        """How well its maps show inserted lesions; None for tables, and if it was not measured."""
        from anomaly_vae.scoring.localization import LocalizationTest

        found = self.manifest.get("localization")
        return LocalizationTest.from_json(found) if found else None

    @property
    def localizes(self) -> bool:
        """Whether maps may be drawn: they show inserted lesions, or this was not measured."""
        return self.localization is None or self.localization.localizes

    @property
    def draws(self) -> bool:
        """Whether the model decodes latents into images, or rows; not into features of a backbone.

        The entry ``backbone`` of the manifest says where such a network comes from.
        """
        return "backbone" not in self.manifest

    @cached_property
    def example(self) -> dict[str, Any]:
        """Synthetic record with typical values, for warm-up and documentation."""
        return self.scorer.encoding.typical_record(self.scorer.schema)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``SHA256SUMS``, hexadecimal."""
        return _sha256(_sums(self.files))

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Contents of every file except ``SHA256SUMS``, by name."""
        files = {GRAPH: self.graph, WEIGHTS: self.weights}
        if self.calibration is not None:
            cycle = self.cycle.tensors() if self.cycle else {}
            tensors = _tensors(self.calibration) | cycle
            for kind, calibration in self.image_groups.items():
                tensors |= _tensors(calibration, f"@{kind}")
            files[CALIBRATION] = save_tensors(tensors)
        if self.value_counts is not None:
            files[COUNTS] = self.value_counts
        if self.unusual_file is not None:
            files[UNUSUAL] = self.unusual_file
        files[MANIFEST] = self._manifest_file()
        return files

    def _manifest_file(self) -> bytes:
        """Return the manifest file.

        The original file is returned unless the manifest has changed, so that a bundle of an older
        format keeps its digest.
        """
        if self.manifest_file and upgrade(json.loads(self.manifest_file)) == self.manifest:
            return self.manifest_file
        return json.dumps(self.manifest, indent=1, sort_keys=True).encode() + b"\n"

    def calibrated(
        self,
        calibration: Calibration,
        evaluation: Mapping[str, Any] | None,
        reference: Reference | None = None,
        unusual: UnusualTest | None = None,
        image_groups: Mapping[str, Calibration] | None = None,
    ) -> Bundle:
        """Return the same model with a calibration.

        Args:
            calibration: the threshold and the calibration scores.
            evaluation: figures on the test split, as plain JSON values.
            reference: a summary of the calibration rows, for the monitor; None for no summary.
            unusual: the test for rows that are unlike the training rows; None for no test.
            image_groups: calibrations of groups of images; None for none.
        """
        reference, image_groups = reference or Reference(), image_groups or {}
        optional = {"unusual", "image_groups"}
        grouped = {kind: _summary(own) for kind, own in image_groups.items()}
        manifest = {
            **{key: value for key, value in self.manifest.items() if key not in optional},
            "calibration": _summary(calibration),
            "evaluation": evaluation,
            "reference": reference.to_json(),
            **({"unusual": unusual.summary()} if unusual else {}),
            **({"image_groups": grouped} if grouped else {}),
        }
        return self.with_notes(
            manifest=manifest,
            calibration=calibration,
            cycle=reference.cycle,
            unusual_file=save_tensors(unusual.tensors()) if unusual else None,
            image_groups=image_groups,
        )

    def with_notes(self, **changes: Any) -> Bundle:
        """Return the same model with other fields, except the graph, the weights and the counts.

        If a session is open it stays, since opening one takes longer than scoring a few rows.
        """
        changed = replace(self, **changes)
        if "scorer" in vars(self):
            vars(changed)["scorer"] = self.scorer
        return changed

    def save(self, path: str | Path) -> Path:
        """Write the bundle folder atomically: completely or not at all."""
        with atomic_folder(Path(path)) as folder:
            for name, content in self.files.items():
                (folder / name).write_bytes(content)
            (folder / SUMS).write_bytes(_sums(self.files))
        return Path(path)


def new_manifest(**content: Any) -> dict[str, Any]:
    """Return a manifest of the current format, without a calibration."""
    head = {"format": FORMAT, "code_version": code_version()}
    return {**head, "calibration": None, "evaluation": None, "reference": None, **content}


def upgrade(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a manifest of any earlier format into the current format."""
    manifest = dict(manifest)
    if manifest.get("format") == 1:  # stored only the scores of the calibration rows
        evaluation = manifest.get("evaluation") or {"anomalies": 0, "rows": 1}
        reference = Reference(evaluation["anomalies"] / evaluation["rows"]).to_json()
        manifest |= {"format": 2, "reference": reference if manifest.get("calibration") else None}
    if manifest.get("format") == 2:  # some configuration keys had other names
        renames = {"config": rename_config, "schema": rename_reading}
        renamed = {key: rename(manifest[key]) for key, rename in renames.items() if key in manifest}
        manifest |= {"format": 3, **renamed}
    return manifest


def load_bundle(path: str | Path, digest: str | None = None) -> Bundle:
    """Read and verify a bundle folder.

    Args:
        path: the folder.
        digest: the expected digest; None to accept any bundle.

    Raises:
        BundleError: the folder is no bundle, has another digest, a missing, extra or altered file
            or a newer format, or its manifest lacks a key that this version needs.

    >>> import numpy as np
    >>> import pandas as pd
    >>> from anomaly_vae import TabularVAEDetector
    >>> rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    >>> from tempfile import TemporaryDirectory
    >>> bundle = TabularVAEDetector(epochs=1, random_state=0).fit(rows).bundle_
    >>> with TemporaryDirectory() as folder:
    ...     loaded = load_bundle(bundle.save(folder + "/model"), bundle.digest)
    >>> loaded.digest == bundle.digest
    True
    """
    folder = Path(path)
    if not (folder / SUMS).is_file():
        raise BundleError(f"'{folder}' is not a bundle: it has no {SUMS}")
    sums = _read_file(folder, SUMS)
    if digest and _sha256(sums) != digest:
        raise BundleError(f"'{folder}' is not the registered bundle: its digest differs")
    return from_files(_verified_files(folder, sums), folder)


def is_sound(path: str | Path, digest: str) -> bool:
    """Return whether a folder holds a complete, readable bundle with this digest."""
    try:
        load_bundle(path, digest)
    except (BundleError, OSError):
        return False
    return True


def from_files(files: Mapping[str, bytes], folder: Path = Path("in memory")) -> Bundle:
    """Restore a bundle from the result of `Bundle.files`; ``folder`` names it in messages.

    Raises:
        BundleError: the format is newer, the manifest lacks a required key, or the calibration is
            incomplete.
    """
    manifest = _read_manifest(files, folder)
    try:
        calibration, cycle = _calibration(manifest, files), _cycle(manifest, files)
        groups = _image_groups(manifest, files)
    except (KeyError, SafetensorError):
        message = f"bundle '{folder}': {CALIBRATION} and {MANIFEST} disagree; make it anew"
        raise BundleError(message) from None
    if ("unusual" in manifest) != (UNUSUAL in files):
        raise BundleError(f"bundle '{folder}': {UNUSUAL} and {MANIFEST} disagree; make it anew")
    parts = files[GRAPH], files[WEIGHTS], calibration, files[MANIFEST], files.get(COUNTS)
    unusual = files.get(UNUSUAL)
    return Bundle(manifest, *parts, cycle=cycle, unusual_file=unusual, image_groups=groups)


def _verified_files(folder: Path, sums: bytes) -> dict[str, bytes]:
    """Read the files of a bundle folder and check them against the content of ``SHA256SUMS``."""
    listed = _parse_sums(folder, sums)
    present = {entry.name for entry in folder.iterdir()} - {SUMS}
    required = {MANIFEST, GRAPH, WEIGHTS}
    for name in sorted((set(listed) | required) - present):
        raise BundleError(f"bundle '{folder}': {name} is missing; fetch the bundle again")
    for name in sorted(present - set(listed)):
        raise BundleError(f"bundle '{folder}': {name} does not belong to it; remove it")
    files = {name: _read_file(folder, name) for name in listed}
    for name, content in files.items():
        if _sha256(content) != listed[name]:
            raise BundleError(f"bundle '{folder}': {name} was altered; fetch the bundle again")
    return files


def _parse_sums(folder: Path, sums: bytes) -> dict[str, str]:
    """Return the digests in ``SHA256SUMS`` by name; only the text that `_sums` writes is accepted.

    Raises:
        BundleError: a byte differs from that text.
    """
    listed = {name.decode(): digest.decode() for digest, name in SUMS_LINE.findall(sums)}
    if _sums_text(listed) != sums:
        raise BundleError(f"bundle '{folder}': {SUMS} was altered; fetch the bundle again")
    return listed


def _read_file(folder: Path, name: str) -> bytes:
    """Read a file of a bundle folder.

    Raises:
        BundleError: it is a link, a folder or something else.
    """
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"bundle '{folder}': {name} is not a regular file; copy the file itself")
    return path.read_bytes()


def _read_manifest(files: Mapping[str, bytes], folder: Path) -> dict[str, Any]:
    """Parse the manifest, translate it into the current format and check its keys."""
    try:
        manifest: dict[str, Any] = strict_json(files[MANIFEST])
        version = manifest.get("code_version", "an unknown version")
    except (ValueError, AttributeError) as error:
        message = f"bundle '{folder}': {MANIFEST} cannot be read: {error}; make it anew"
        raise BundleError(message) from None
    if manifest.get("format", FORMAT) > FORMAT:
        raise BundleError(
            f"bundle '{folder}' has format {manifest['format']}, this version reads up to "
            f"{FORMAT}; upgrade anomaly-vae (the bundle was made by {version})"
        )
    manifest = upgrade(manifest)
    needed = KEYS + KEYS_BY_KIND.get(manifest.get("kind", ""), ())
    for key in (key for key in needed if key not in manifest):
        raise BundleError(
            f"bundle '{folder}' was made by an older version ({version}): its {MANIFEST} has no "
            f"'{key}'; train it again"
        )
    return manifest


def _summary(calibration: Calibration) -> dict[str, Any]:
    """Return the manifest entry of a calibration, with ``groups`` only if there are groups."""
    summary = {
        "method": calibration.method,
        "alpha": calibration.alpha,
        "threshold": calibration.threshold,
        "n": len(calibration.scores),
        "figures": calibration.figures,
    }
    if (groups := calibration.groups) is None:
        return summary
    by_level = {level: _summary(calibrated) for level, calibrated in groups.by_level.items()}
    return {**summary, "groups": {"column": groups.column, "own": by_level}}


def _tensors(calibration: Calibration, suffix: str = "") -> dict[str, Scores]:
    """Return the scores and weights, if any, of a calibration and of its groups, by tensor name."""
    tensors = {f"scores{suffix}": calibration.scores}
    if calibration.weights is not None:
        tensors[f"weights{suffix}"] = calibration.weights
    for level, group in calibration.groups.by_level.items() if calibration.groups else ():
        tensors |= _tensors(group, f"/{level}")
    return tensors


def _calibration(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Calibration | None:
    """Restore the calibration from the manifest and the tensors.

    Raises:
        KeyError: only one of the two has a calibration.
    """
    summary = manifest["calibration"]
    if summary is None and CALIBRATION in files:
        raise KeyError(CALIBRATION)
    return summary and _read_calibration(summary, load_tensors(files[CALIBRATION]))


def _image_groups(
    manifest: Mapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, Calibration]:
    """Restore the calibrations of groups of images, if there are any.

    Raises:
        KeyError: a tensor is missing.
    """
    if not (summaries := manifest.get("image_groups")):
        return {}
    tensors = load_tensors(files[CALIBRATION])
    return {k: _read_calibration(one, tensors, f"@{k}") for k, one in summaries.items()}


def _cycle(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Cycle | None:
    """Restore the variation over time, if the manifest names its time column.

    Raises:
        KeyError: a tensor is missing.
    """
    column = (manifest["reference"] or {}).get("time")
    return column and Cycle.from_tensors(column, load_tensors(files[CALIBRATION]))


def _read_calibration(
    summary: Mapping[str, Any], tensors: Mapping[str, Scores], suffix: str = ""
) -> Calibration:
    """Restore a calibration from the results of `_summary` and `_tensors`."""
    groups = summary.get("groups")
    return Calibration(
        summary["method"],
        summary["alpha"],
        summary["threshold"],
        tensors[f"scores{suffix}"],
        summary.get("figures", {}),  # older versions stored none
        tensors.get(f"weights{suffix}"),
        groups and _read_groups(groups, tensors),
    )


def _read_groups(groups: Mapping[str, Any], tensors: Mapping[str, Scores]) -> Groups:
    """Restore the groups of a calibration."""
    by_level = {
        level: _read_calibration(summary, tensors, f"/{level}")
        for level, summary in groups["own"].items()
    }
    return Groups(groups["column"], by_level)


def _sums(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``SHA256SUMS``."""
    return _sums_text({name: _sha256(content) for name, content in files.items()})


def _sums_text(digests: Mapping[str, str]) -> bytes:
    """Return the content of ``SHA256SUMS`` for digests by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
