"""Record runs, register versions and move aliases; the only module that imports MLflow.

A process that must not import MLflow runs this module as a child process to fetch a bundle:

    python -m anomaly_vae.lifecycle.registry fetch URI --to CACHE

The command prints a `BundleRef` as one JSON line: the folder, its digest, and the version's name,
number and alias. A cached bundle is not fetched again, so checking whether an alias has moved is
cheap.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import posixpath
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from anomaly_vae._version import __version__
from anomaly_vae.artifacts.bundle import SUMS, Bundle, is_sound
from anomaly_vae.artifacts.registry_names import (
    DEFAULT_URI,
    DIGEST_TAG,
    FAULT,
    MISSING,
    MODEL_URI,
    UNFIT,
    UNWRITABLE,
    BundleRef,
    database_file,
)
from anomaly_vae.data.dataframes import record_to_frame
from anomaly_vae.errors import BundleError, RegistryError
from anomaly_vae.files import atomic_folder, locked, own_temporary_folder
from anomaly_vae.masking import masked, remember_address
from anomaly_vae.scoring.modality import Schema as DataSchema

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

CHAMPION, CHALLENGER = "champion", "challenger"
BUNDLE = "bundle"
INPUTS_TAG = "anomaly_vae.inputs_digest"
TEST_TAG = "anomaly_vae.test_split"
TEST_DIGEST_TAG = "anomaly_vae.test_split_digest"
POLICY_TAG = "anomaly_vae.policy"
NEWER_LABELS_TAG = "anomaly_vae.frozen_labels"
TRAINED_TAG = "anomaly_vae.trained"
TRAINED_RUN_TAG = "anomaly_vae.trained_run"
FROZEN_TAG = "anomaly_vae.frozen"
DECISION_TAG = "anomaly_vae.decision"
HISTORY_TAG = "anomaly_vae.promotions"
MAX_PARAM_CHARACTERS = 6000
"""Maximum length of an MLflow parameter."""
MAX_PARAM_NAME_CHARACTERS = 250
"""Maximum length of the name of an MLflow parameter."""
REFUSED = re.compile(r"[^/\w.\- :]|:(?=[0-9a-f]+:)")
"""Characters that MLflow refuses in a parameter's name, and colons that look like an escape."""
REQUIREMENTS = {
    "tabular": f"anomaly-vae=={__version__}",
    "image": f"anomaly-vae[images]=={__version__}",
}
"""Requirement of a registered model, by kind of data."""

DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "mysql": ("pymysql", "pymysql"),
    "mssql": ("pyodbc", "pyodbc"),
}
"""Driver of each database in a tracking URI, and the package that contains it."""
FORMS = "use http(s)://HOST:PORT, sqlite:///FILE or postgresql+psycopg2://HOST/NAME"
"""Forms of tracking URIs that error messages suggest."""
INTERRUPTED = re.compile(
    r"sqlite3\.OperationalError\) (duplicate column|(table|index) .+ already )"
)
"""Pattern of SQLite's error in a migration after the creation of the database was interrupted."""

Method = TypeVar("Method")


def _translate_errors(method: Method) -> Method:
    """Turn exceptions of MLflow and of its database into one-line `RegistryError`s."""

    @wraps(cast("Any", method))
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return cast("Any", method)(*args, **kwargs)
        except _mlflow_errors() as error:
            message = f"MLflow: {_reason(error)}{_remedy(error)}"
            raise RegistryError(message, missing=_is_missing(error)) from None

    return cast("Method", wrapper)


def _reason(error: Exception) -> str:
    """Return the first line of an error without passwords, cut to 300 characters."""
    if type(error).__name__.startswith("Unsupported"):  # of a scheme; MLflow lists all others
        return f"it has no registry at '{mlflow.get_tracking_uri()}'"
    lines = masked(str(error)).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


def _remedy(error: Exception) -> str:
    """Return advice if something is not there, or the database is incomplete or has no driver."""
    uri, kind = mlflow.get_tracking_uri(), type(error).__name__
    if _is_missing(error):
        return f" in the registry {named_registry(uri)}"
    if kind.startswith("Unsupported"):
        return f"; {FORMS}"
    if isinstance(error, ImportError) or kind == "NoSuchModuleError":
        return _driver_advice(uri)
    file = database_file(uri)
    if file is None or not INTERRUPTED.search(str(error)):
        return ""
    return f"; the creation of '{file}' was interrupted: move it away and run again"


def named_registry(uri: str) -> str:
    """Return a registry's address without passwords, and how to name another one.

    >>> named_registry("sqlite:///mlflow.db")
    "'sqlite:///mlflow.db' (set MLFLOW_TRACKING_URI for another)"
    """
    return f"'{masked(uri)}' (set MLFLOW_TRACKING_URI for another)"


def _driver_advice(uri: str) -> str:
    """Return the form of a database's URI that names its driver, and how to install the driver."""
    database = re.split(r"[+:]", uri, maxsplit=1)[0]
    if database not in DRIVERS:
        return ""
    driver, package = DRIVERS[database]
    return f"; write the tracking URI as {database}+{driver}://…, and pip install {package}"


def _check_address(uri: str) -> None:
    """Refuse a tracking URI that cannot be split into its parts.

    Raises:
        RegistryError: the URI has no scheme, or its host or port is invalid.
    """
    if "://" not in uri and uri != "databricks":
        raise RegistryError(f"'{uri}' is not a tracking URI; {FORMS}")
    try:
        valid = _has_valid_host(uri)
    except Exception:  # noqa: BLE001  # SQLAlchemy's, which may not be installed, or a ValueError
        valid = False
    if not valid:
        raise RegistryError(
            f"the host or the port of the tracking URI '{uri}' is invalid; in a user name or "
            "password, write / as %2F, : as %3A and @ as %40"
        )


def _has_valid_host(uri: str) -> bool:
    """Return whether MLflow or SQLAlchemy will find a host in a URI.

    Raises:
        ValueError, SQLAlchemyError: the port is no number, or the URI cannot be split.
    """
    if uri.startswith(("http://", "https://")):
        address = urlsplit(uri)
        return bool(address.hostname) and (address.port is None or address.port > 0)
    if not importlib.util.find_spec("sqlalchemy") or "://" not in uri:
        return True
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    return url.host is None or "@" not in f"{url.host}{url.database}"


def _is_missing(error: Exception) -> bool:
    """Return whether the error means that a model, version or alias does not exist.

    MLflow reports a missing alias as an invalid parameter value.
    """
    code = getattr(error, "error_code", None)
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
    )


def _mlflow_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that MLflow raises, with SQLAlchemy's if that is loaded."""
    database = sys.modules.get("sqlalchemy.exc")
    errors = (MlflowException, OSError, ImportError)
    return (*errors, database.SQLAlchemyError) if database else errors


@dataclass(frozen=True)
class Version:
    """A registered version and its current tags and aliases; its bundle never changes."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    registered_at: float
    """Registration time, in seconds since 1970."""

    @classmethod
    def of(cls, registered: ModelVersion) -> Version:
        """Return a version as MLflow describes it."""
        return cls(
            registered.name,
            str(registered.version),
            dict(registered.tags),
            tuple(registered.aliases),
            registered.run_id,
            registered.creation_timestamp / 1000,
        )

    @property
    def uri(self) -> str:
        """URI of the version: ``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"


class Run:
    """An MLflow run, for writing."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.id = client, run_id

    @_translate_errors
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys of nested mappings are joined by dots, see `param_name`."""
        entries = [
            Param(param_name(key), str(value)[:MAX_PARAM_CHARACTERS])
            for key, value in _flatten(params)
        ]
        for batch in batched(entries, 100):
            self._client.log_batch(self.id, params=batch)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers among the metrics and ignore all other values."""
        self.log_curves([metrics])

    @_translate_errors
    def log_curves(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Log the metrics of each step, in order; values that are not numbers are ignored."""
        now = int(time.time() * 1000)
        entries = [
            Metric(key, float(value), now, step)
            for step, metrics in enumerate(steps)
            for key, value in metrics.items()
            if isinstance(value, int | float)
        ]
        for batch in batched(entries, 1000):
            self._client.log_batch(self.id, metrics=batch)

    @_translate_errors
    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as an image file."""
        self._client.log_figure(self.id, figure, name)

    @_translate_errors
    def log_json(self, content: Any, name: str) -> None:
        """Log a JSON artifact."""
        self._client.log_text(self.id, json.dumps(content, indent=1, sort_keys=True), name)

    @_translate_errors
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._client.log_artifact(self.id, str(path), folder)

    @_translate_errors
    def set_param_once(self, key: str, value: str) -> str:
        """Write a parameter unless it already has a value, and return its value.

        MLflow never changes a parameter, with any database or server. If several processes write
        the same parameter, the first succeeds and the others receive its value.
        """
        try:
            self._client.log_param(self.id, key, value, synchronous=True)
        except MlflowException as error:
            existing = self.params.get(key)
            if error.error_code != "INVALID_PARAMETER_VALUE" or existing is None:
                raise
            return existing
        return value

    @property
    @_translate_errors
    def params(self) -> Mapping[str, str]:
        """All parameters of the run."""
        params: Mapping[str, str] = self._client.get_run(self.id).data.params
        return params

    @_translate_errors
    def log_bundle(self, path: Path) -> str:
        """Log a bundle folder as an artifact and return its ``runs:/`` URI."""
        self._client.log_artifacts(self.id, str(path), BUNDLE)
        return f"runs:/{self.id}/{BUNDLE}"


class Registry:
    """The runs and registered models of one tracking server or database."""

    @_translate_errors
    def __init__(self, uri: str | None = None, create: bool = True) -> None:
        """Connect to the registry; ``MLFLOW_TRACKING_URI`` takes precedence over ``uri``.

        Args:
            uri: a tracking URI; None for `DEFAULT_URI`.
            create: whether to create an SQLite database that does not exist.

        Raises:
            RegistryError: the URI is a plain folder, which MLflow no longer supports, or a database
                that does not exist or cannot be opened.
        """
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = from_environment or uri or DEFAULT_URI
        remember_address(self.uri)
        _check_address(self.uri)
        _reduce_logging()
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        if not from_environment:  # set by MLflow, it would take precedence later
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        if (file := database_file(self.uri)) and not os.path.lexists(file):
            if not create:
                raise RegistryError(f"there is no database '{file}'; set MLFLOW_TRACKING_URI")
            _create_database(file)
        self._client = MlflowClient(self.uri, self.uri)

    # ------------------------------------------------------------ runs

    @contextmanager
    def run(self, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Start a run, and end it after the block as finished, failed or killed (interrupted)."""
        tags = {**tags, "anomaly_vae.version": __version__}
        run_id = self._start(experiment, name, tags)
        try:
            yield Run(self._client, run_id)
        except BaseException as error:
            with suppress(RegistryError):  # report the original error
                self._end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._end(run_id, "FINISHED")

    @_translate_errors
    def _end(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)

    @_translate_errors
    def _start(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        existing = self._client.get_experiment_by_name(experiment)
        experiment_id = existing.experiment_id if existing else self._create_experiment(experiment)
        run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @_translate_errors
    def experiment_of(self, run_id: str) -> str:
        """Return the name of a run's experiment."""
        run = self._client.get_run(run_id)
        return str(self._client.get_experiment(run.info.experiment_id).name)

    def _create_experiment(self, name: str) -> str:
        """Create an experiment.

        With an SQLite database, artifacts are stored in ``mlartifacts/`` beside it; a tracking
        server chooses its own location.
        """
        database = database_file(self.uri)
        folder = database.absolute().parent / "mlartifacts" if database else None
        return str(self._client.create_experiment(name, folder.as_uri() if folder else None))

    # ------------------------------------------------------------ versions

    @_translate_errors
    def register(
        self,
        run: Run,
        bundle: Bundle,
        name: str,
        tags: Mapping[str, str],
        alias: str | None = CHALLENGER,
    ) -> Version:
        """Log a bundle as a model of a run, register it, and point an alias to it, if any."""
        with tempfile.TemporaryDirectory() as temporary, _quiet_warnings():
            folder = bundle.save(Path(temporary) / BUNDLE)
            mlflow.start_run(run_id=run.id, log_system_metrics=False)
            try:
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    loader_module="anomaly_vae.pyfunc",
                    data_path=str(folder),
                    signature=signature(bundle.scorer.schema, _has_groups(bundle)),
                    input_example=record_to_frame(bundle.example, bundle.scorer.schema),
                    pip_requirements=[REQUIREMENTS[bundle.manifest["kind"]], "pandas"],
                )
            finally:
                mlflow.end_run()
        self._ensure_model(name)
        version = self._client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=run.id,
            model_id=logged.model_id,
            tags={**tags, DIGEST_TAG: bundle.digest},
        )
        if alias:
            self._client.set_registered_model_alias(name, alias, version.version)
        return self.version(name, version.version)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @_translate_errors
    def version(self, name: str, version: str) -> Version:
        """Return a version by its number.

        Raises:
            RegistryError: the model or the version is unknown.
        """
        return Version.of(self._client.get_model_version(name, version))

    @_translate_errors
    def by_alias(self, name: str, alias: str) -> Version:
        """Return the version that an alias points to.

        Raises:
            RegistryError: the model or the alias is unknown.
        """
        return Version.of(self._client.get_model_version_by_alias(name, alias))

    def champion(self, name: str) -> Version | None:
        """Return the champion of a model; None if it has none or the model is unknown."""
        try:
            return self.by_alias(name, CHAMPION)
        except RegistryError as error:
            if error.missing:
                return None
            raise

    @_translate_errors
    def _model(self, name: str) -> RegisteredModel | None:
        models = self._client.search_registered_models(filter_string=f"name = '{name}'")
        return models[0] if models else None

    @_translate_errors
    def find(self, name: str, inputs_digest: str) -> Version | None:
        """Return the newest version with this digest of inputs, None if there is none."""
        versions = self._versions_of(name)
        same = [v for v in versions if v.tags.get(INPUTS_TAG) == inputs_digest]
        newest = max(same, key=lambda v: int(v.version), default=None)
        return self.version(name, str(newest.version)) if newest else None

    def _versions_of(self, name: str) -> Iterator[Any]:
        return _all_pages(partial(self._client.search_model_versions, f"name = '{name}'"))

    @_translate_errors
    def models(self) -> list[dict[str, Any]]:
        """List all registered models, each with its versions and aliases."""
        versions: dict[str, list[int]] = {}
        for registered in _all_pages(self._client.search_model_versions):
            versions.setdefault(registered.name, []).append(int(registered.version))
        return [
            {
                "name": model.name,
                "aliases": {alias: str(number) for alias, number in model.aliases.items()},
                "versions": [str(number) for number in sorted(versions.get(model.name, []))],
            }
            for model in _all_pages(self._client.search_registered_models)
        ]

    # ------------------------------------------------------------ promotion

    @_translate_errors
    def tag_version(self, version: Version, key: str, value: str) -> None:
        """Set a tag of a registered version."""
        self._client.set_model_version_tag(version.name, version.version, key, value)

    @_translate_errors
    def set_champion(self, name: str, version: str) -> None:
        """Point the alias ``champion`` to a version."""
        self._client.set_registered_model_alias(name, CHAMPION, version)

    @_translate_errors
    def history(self, name: str) -> Run | None:
        """Return the run that holds the history of a model's champions, None if there is none."""
        model = self._model(name)
        run_id = model.tags.get(HISTORY_TAG) if model else None
        return Run(self._client, run_id) if run_id else None

    @_translate_errors
    def open_history(self, name: str) -> Run:
        """Return the run that holds the history of a model's champions; create it if necessary.

        The id of this run is a parameter of the run that registered the model's first version.
        Because a parameter can be written only once, concurrent processes agree on one history.

        Raises:
            RegistryError: no version of the model was registered by a run.
        """
        if existing := self.history(name):
            return existing
        first = self._first_run(name)
        experiment = self._client.get_run(first.id).info.experiment_id
        created = self._client.create_run(experiment, run_name=f"promotions of {name}").info.run_id
        self._client.set_terminated(created)
        agreed = first.set_param_once(HISTORY_TAG, created)
        if agreed != created:
            self._client.delete_run(created)
        self._client.set_registered_model_tag(name, HISTORY_TAG, agreed)
        return Run(self._client, agreed)

    def _first_run(self, name: str) -> Run:
        """Return the run that registered the model's first version."""
        runs = {
            int(version.version): version.run_id
            for version in self._versions_of(name)
            if version.run_id
        }
        if not runs:
            where = named_registry(self.uri)
            raise RegistryError(
                f"there is no registered model '{name}', or no run made a version of it, in {where}"
                "; run: anomaly-vae calibrate CONFIG --model URI"
            )
        return Run(self._client, runs[min(runs)])

    # ------------------------------------------------------------ fetching

    @_translate_errors
    def fetch(self, uri: str, cache: Path | None = None) -> BundleRef:
        """Fetch the bundle of a ``models:/`` or ``runs:/`` URI, or refer to a local folder.

        Args:
            uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/…`` or a folder.
            cache: the folder that `cache_bundle` fills; an intact copy in it is not fetched again.

        Raises:
            RegistryError: the model, alias, version or run is unknown.
        """
        match = MODEL_URI.fullmatch(uri)
        if match:
            return self._fetch_version(uri, cache, **match.groupdict())
        if uri.startswith("runs:/"):
            return BundleRef(self.download(uri))
        if uri.startswith("models:/"):
            raise RegistryError(f"'{uri}': expected models:/NAME@ALIAS or models:/NAME/VERSION")
        return BundleRef(uri)

    def _fetch_version(
        self, uri: str, cache: Path | None, name: str, alias: str | None, version: str | None
    ) -> BundleRef:
        registered = self.by_alias(name, alias) if alias else self.version(name, str(version))
        digest = registered.tags.get(DIGEST_TAG)
        if digest is None:
            raise RegistryError(f"'{uri}' was not registered by anomaly-vae: it has no digest")
        folder = cache / digest if cache else None
        if not (folder and is_sound(folder, digest)):
            folder = Path(self.download(registered.uri)) / "data" / BUNDLE
        return BundleRef(
            str(folder), digest, name, registered.version, alias, registered.registered_at
        )

    @_translate_errors
    def download(self, uri: str, folder: str | Path | None = None) -> str:
        """Download an artifact, to ``folder`` if given, and return its local path."""
        target = str(folder) if folder else None
        return str(mlflow.artifacts.download_artifacts(uri, dst_path=target)).rstrip("/")


def _create_database(file: Path) -> None:
    """Create a database in a temporary folder and move it into place, unless there is one by then.

    MLflow creates its tables one by one and cannot resume after an interruption, so a database must
    not be visible before it is complete.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as temporary:
        complete = Path(temporary).absolute() / file.name
        _create_tables(f"sqlite:///{complete}")
        with locked(file.parent):
            if not os.path.lexists(file):
                complete.rename(file)


def _create_tables(uri: str) -> None:
    """Create MLflow's tables by opening a store, then close its connections."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with _quiet_warnings():
        store = cast("Any", SqlAlchemyStore)(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()


def cache_bundle(fetched: BundleRef, cache: Path) -> BundleRef:
    """Verify a bundle and copy it to ``cache/DIGEST``, unless there is an intact copy.

    Raises:
        BundleError: the fetched bundle is damaged or is not the one that was registered.
    """
    bundle = fetched.load()
    target = cache / bundle.digest
    if not is_sound(target, bundle.digest):
        with atomic_folder(target, keep=partial(is_sound, digest=bundle.digest)) as folder:
            for name, content in bundle.files.items():
                (folder / name).write_bytes(content)
            (folder / SUMS).write_bytes((Path(fetched.path) / SUMS).read_bytes())
    return replace(fetched, path=str(target), digest=bundle.digest)


def _has_groups(bundle: Bundle) -> bool:
    return bool(bundle.calibration and bundle.calibration.groups)


def signature(schema: DataSchema, groups: bool = False) -> ModelSignature:
    """Return a model's MLflow signature.

    Every column except that of an image is optional, and numbers are doubles, so that missing
    values are accepted. MLflow's binary type accepts bytes and paths.

    Args:
        schema: the columns that the model reads.
        groups: whether the model is calibrated by group and returns two more columns.
    """
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType[column.mlflow_type], column.name, required=column.spec.required)
        for column in schema.columns
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.double, "p_value"),
        ColSpec(DataType.boolean, "is_anomaly"),
    ]
    if groups:
        outputs += [
            ColSpec(DataType.string, "group", required=False),
            ColSpec(DataType.double, "threshold"),
        ]
    outputs.append(ColSpec(DataType.string, "unusual_input", required=False))
    return ModelSignature(Schema(columns), Schema(outputs))


def _all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Yield all results of a search, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield keys and values of nested mappings, with keys joined by dots."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def param_name(key: str) -> str:
    """Return a name that MLflow accepts for a parameter; different keys have different names.

    Characters that MLflow refuses become their code point in hexadecimal between colons, such as
    ``:24:`` for a dollar sign. A long name ends with a digest in place of the rest.

    >>> from anomaly_vae.lifecycle.registry import param_name
    >>> param_name("data.features.Amount ($).type")
    'data.features.Amount :28::24::29:.type'
    """
    name = REFUSED.sub(lambda match: f":{ord(match[0]):x}:", key)
    if posixpath.normpath(name) != name:  # MLflow treats names as paths
        name = name.replace("/", ":2f:")
    if len(name) <= MAX_PARAM_NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{name[: MAX_PARAM_NAME_CHARACTERS - 17]}:{digest}"


def batched(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield consecutive lists of at most ``size`` entries."""
    for start in range(0, len(entries), size):
        yield list(entries[start : start + size])


def _reduce_logging() -> None:
    """Hide MLflow's and Alembic's log lines about migrations, but not their warnings."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    logging.getLogger("mlflow.tracking._model_registry.fluent").setLevel(logging.ERROR)


@contextmanager
def _quiet_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run ``fetch URI --to CACHE``: print a JSON line, or an error on stderr with an exit code."""
    parser = argparse.ArgumentParser(prog="python -m anomaly_vae.lifecycle.registry")
    fetch = parser.add_subparsers(required=True).add_parser("fetch")
    fetch.add_argument("uri")
    fetch.add_argument("--to", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        with own_temporary_folder():
            fetched = Registry(create=False).fetch(options.uri, options.to)
            cached = cache_bundle(fetched, options.to)
    except RegistryError as error:
        return _fail(str(error), MISSING if error.missing else FAULT)
    except BundleError as error:
        return _fail(str(error), UNFIT)
    except OSError as error:
        return _fail(f"'{options.to}': {error.strerror or error}", UNWRITABLE)
    sys.stdout.write(json.dumps(asdict(cached)) + "\n")
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{masked(message)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
