"""Runs, registered versions and their aliases: the only import of MLflow.

A process that must stay lean asks a child for a bundle:

    python -m anomaly_vae.lifecycle.registry fetch URI --to CACHE

prints one JSON line with the folder, its digest and the version's name, number and alias. What is
in the cache already is not fetched again, so that asking whether anything changed is cheap.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
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

from anomaly_vae._version import __version__
from anomaly_vae.artifacts.bundle import SUMS, Bundle, is_sound, load_bundle
from anomaly_vae.data.dataframes import record_to_frame
from anomaly_vae.errors import BundleError, RegistryError
from anomaly_vae.files import atomic_folder, locked, own_temporary_folder
from anomaly_vae.scoring.modality import Schema as DataSchema

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

DEFAULT_URI = "sqlite:///mlflow.db"
CHAMPION, CHALLENGER = "champion", "challenger"
BUNDLE = "bundle"
DIGEST_TAG = "anomaly_vae.bundle_digest"
INPUTS_TAG = "anomaly_vae.inputs_digest"
TEST_TAG = "anomaly_vae.test_split"
TEST_DIGEST_TAG = "anomaly_vae.test_split_digest"
POLICY_TAG = "anomaly_vae.policy"
TRAINED_TAG = "anomaly_vae.trained"
TRAINED_RUN_TAG = "anomaly_vae.trained_run"
FROZEN_TAG = "anomaly_vae.frozen"
DECISION_TAG = "anomaly_vae.decision"
HISTORY_TAG = "anomaly_vae.promotions"
MOST_PARAM_CHARACTERS = 6000
REQUIRED = {
    "tabular": f"anomaly-vae=={__version__}",
    "image": f"anomaly-vae[images]=={__version__}",
}
"""What a model of each kind needs installed."""
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")

FAULT, MISSING, UNFIT, UNWRITABLE = 1, 3, 4, 5
"""How `main` ends: no registry, nothing of that name in it, a bad bundle, no room for it."""

HALF_MADE = re.compile(r"sqlite3\.OperationalError\) (duplicate column|(table|index) .+ already )")
"""What SQLite says of a migration that begins where another broke off."""

Method = TypeVar("Method")


def _translate_errors(method: Method) -> Method:
    """Turn MLflow's exceptions, and those of the database below it, into one line of ours."""

    @wraps(cast("Any", method))
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return cast("Any", method)(*args, **kwargs)
        except _failures() as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
            raise RegistryError(
                f"MLflow: {reason}{_remedy(reason)}", missing=_is_missing(error)
            ) from None

    return cast("Method", wrapper)


def _remedy(reason: str) -> str:
    """What to do about a database that was broken off while MLflow made its tables."""
    file = _database(mlflow.get_tracking_uri())
    if file is None or not HALF_MADE.search(reason):
        return ""
    return f"; '{file}' was broken off while it was made: move it away and run again"


def _is_missing(error: Exception) -> bool:
    """Whether MLflow says that there is none; of an alias it says that the value is invalid."""
    code = getattr(error, "error_code", None)
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
    )


def _failures() -> tuple[type[Exception], ...]:
    """What MLflow raises, and SQLAlchemy where it is loaded: a client of a server needs none."""
    database = sys.modules.get("sqlalchemy.exc")
    errors = (MlflowException, OSError, ImportError)
    return (*errors, database.SQLAlchemyError) if database else errors


@dataclass(frozen=True)
class Version:
    """A registered version; a registered model's content never changes, its aliases do."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    registered_at: float

    @property
    def uri(self) -> str:
        """What commands take."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Fetched:
    """A bundle folder on this machine, and which version it is."""

    path: str
    digest: str | None
    name: str | None = None
    version: str | None = None
    alias: str | None = None
    registered_at: float | None = None
    """in seconds since 1970"""

    def load(self) -> Bundle:
        """Read it, its digest checked where the registry knows it."""
        return load_bundle(self.path, self.digest)


class Run:
    """One MLflow run that is being recorded."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.id = client, run_id

    @_translate_errors
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested mappings become dotted names."""
        entries = [Param(key, str(value)[:MOST_PARAM_CHARACTERS]) for key, value in _flat(params)]
        for some in batched(entries, 100):
            self._client.log_batch(self.id, params=some)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Numbers only; the rest is left to artifacts."""
        self.log_curves([metrics])

    @_translate_errors
    def log_curves(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """The same metrics at every step."""
        now = int(time.time() * 1000)
        entries = [
            Metric(key, float(value), now, step)
            for step, metrics in enumerate(steps)
            for key, value in metrics.items()
            if isinstance(value, int | float)
        ]
        for some in batched(entries, 1000):
            self._client.log_batch(self.id, metrics=some)

    @_translate_errors
    def log_figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure as a picture."""
        self._client.log_figure(self.id, figure, name)

    @_translate_errors
    def log_json(self, content: Any, name: str) -> None:
        """A JSON artifact."""
        self._client.log_text(self.id, json.dumps(content, indent=1, sort_keys=True), name)

    @_translate_errors
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact."""
        self._client.log_artifact(self.id, str(path), folder)

    @_translate_errors
    def settle(self, key: str, value: str) -> str:
        """Write a parameter once and for all; what it says from now on.

        MLflow never changes a parameter, in no database and through no server: of several who
        write one at the same time, all but the first are told what that one wrote.
        """
        try:
            self._client.log_param(self.id, key, value, synchronous=True)
        except MlflowException as error:
            settled = self.settled.get(key)
            if error.error_code != "INVALID_PARAMETER_VALUE" or settled is None:
                raise
            return settled
        return value

    @property
    @_translate_errors
    def settled(self) -> Mapping[str, str]:
        """The parameters there are."""
        params: Mapping[str, str] = self._client.get_run(self.id).data.params
        return params

    @_translate_errors
    def log_bundle(self, path: Path) -> str:
        """A bundle folder as an artifact; returns its ``runs:/`` URI."""
        self._client.log_artifacts(self.id, str(path), BUNDLE)
        return f"runs:/{self.id}/{BUNDLE}"


class Registry:
    """Runs and registered models of one tracking server or database."""

    @_translate_errors
    def __init__(self, uri: str | None = None, create: bool = True) -> None:
        """Connect; ``MLFLOW_TRACKING_URI`` wins over ``uri``.

        Args:
            uri: a tracking URI.
            create: whether to make an SQLite database that is not there.

        Raises:
            RegistryError: a plain folder, which MLflow no longer keeps a registry in, or a
                database that is not there or cannot be opened.
        """
        wanted = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = wanted or uri or DEFAULT_URI
        if "://" not in self.uri and self.uri != "databricks":
            raise RegistryError(
                f"'{self.uri}' is not a tracking URI; use sqlite:///mlflow.db or a server's address"
            )
        _hush()
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        if not wanted:  # MLflow leaves it in the environment, where it would win from now on
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        if (file := _database(self.uri)) and not os.path.lexists(file):
            if not create:
                raise RegistryError(f"there is no database '{file}'; set MLFLOW_TRACKING_URI")
            _create(file)
        self._client = MlflowClient(self.uri, self.uri)

    # ------------------------------------------------------------ runs

    @contextmanager
    def run(self, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Record a run; it ends as failed or killed when the block does."""
        tags = {**tags, "anomaly_vae.version": __version__}
        run_id = self._start(experiment, name, tags)
        try:
            yield Run(self._client, run_id)
        except BaseException as error:
            with suppress(RegistryError):  # what broke the run off is what must be told
                self._end(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._end(run_id, "FINISHED")

    @_translate_errors
    def _end(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)

    @_translate_errors
    def _start(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._create_experiment(experiment)
        run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @_translate_errors
    def experiment_of(self, run_id: str) -> str:
        """The name of the experiment that a run is in."""
        run = self._client.get_run(run_id)
        return str(self._client.get_experiment(run.info.experiment_id).name)

    def _create_experiment(self, name: str) -> str:
        """Beside an SQLite file, artifacts go to ``mlartifacts/``; a server knows its own place."""
        database = _database(self.uri)
        place = database.absolute().parent / "mlartifacts" if database else None
        return str(self._client.create_experiment(name, place.as_uri() if place else None))

    # ------------------------------------------------------------ versions

    @_translate_errors
    def register(self, run: Run, bundle: Bundle, name: str, tags: Mapping[str, str]) -> Version:
        """Log the bundle as a model of this run, register it, alias it challenger."""
        with tempfile.TemporaryDirectory() as place, _quiet_warnings():
            folder = bundle.save(Path(place) / BUNDLE)
            mlflow.start_run(run_id=run.id, log_system_metrics=False)
            try:
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    loader_module="anomaly_vae.pyfunc",
                    data_path=str(folder),
                    signature=signature(bundle.scorer.schema, _has_groups(bundle)),
                    input_example=record_to_frame(bundle.example, bundle.scorer.schema),
                    pip_requirements=[REQUIRED[bundle.manifest["kind"]], "pandas"],
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
        self._client.set_registered_model_alias(name, CHALLENGER, version.version)
        return self.version(name, version.version)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @_translate_errors
    def version(self, name: str, version: str) -> Version:
        """One version by number."""
        found = self._client.get_model_version(name, version)
        return Version(
            name,
            str(found.version),
            dict(found.tags),
            tuple(found.aliases),
            found.run_id,
            found.creation_timestamp / 1000,
        )

    @_translate_errors
    def by_alias(self, name: str, alias: str) -> Version:
        """The version an alias points to.

        Raises:
            RegistryError: no such model or alias.
        """
        found = self._client.get_model_version_by_alias(name, alias)
        return self.version(name, found.version)

    def champion(self, name: str) -> Version | None:
        """The champion, if there is one; a name that nobody registered has none."""
        model = self._model(name)
        return self.by_alias(name, CHAMPION) if model and CHAMPION in model.aliases else None

    @_translate_errors
    def _model(self, name: str) -> RegisteredModel | None:
        found = self._client.search_registered_models(filter_string=f"name = '{name}'")
        return found[0] if found else None

    @_translate_errors
    def find(self, name: str, inputs_digest: str) -> Version | None:
        """The newest version made of the same inputs."""
        search = partial(self._client.search_model_versions, f"name = '{name}'")
        same = [v for v in _every(search) if v.tags.get(INPUTS_TAG) == inputs_digest]
        newest = max(same, key=lambda v: int(v.version), default=None)
        return self.version(name, str(newest.version)) if newest else None

    @_translate_errors
    def models(self) -> list[dict[str, Any]]:
        """Every registered model with its versions and aliases."""
        versions: dict[str, list[int]] = {}
        for found in _every(self._client.search_model_versions):
            versions.setdefault(found.name, []).append(int(found.version))
        return [
            {
                "name": model.name,
                "aliases": {alias: str(number) for alias, number in model.aliases.items()},
                "versions": [str(number) for number in sorted(versions.get(model.name, []))],
            }
            for model in _every(self._client.search_registered_models)
        ]

    # ------------------------------------------------------------ promotion

    @_translate_errors
    def tag_version(self, version: Version, key: str, value: str) -> None:
        """Set a tag of a version."""
        self._client.set_model_version_tag(version.name, version.version, key, value)

    @_translate_errors
    def set_champion(self, name: str, version: str) -> None:
        """Move the alias."""
        self._client.set_registered_model_alias(name, CHAMPION, version)

    @_translate_errors
    def history(self, name: str) -> Run | None:
        """The run that holds the history of a model's champions, if there is one."""
        model = self._model(name)
        run_id = model.tags.get(HISTORY_TAG) if model else None
        return Run(self._client, run_id) if run_id else None

    @_translate_errors
    def open_history(self, name: str) -> Run:
        """The same; made where there is none.

        The run of the model's first version says which it is, once and for all.

        Raises:
            RegistryError: no version was registered by a run.
        """
        if known := self.history(name):
            return known
        first = self._first_run(name)
        experiment = self._client.get_run(first.id).info.experiment_id
        made = self._client.create_run(experiment, run_name=f"promotions of {name}").info.run_id
        self._client.set_terminated(made)
        agreed = first.settle(HISTORY_TAG, made)
        if agreed != made:
            self._client.delete_run(made)
        self._client.set_registered_model_tag(name, HISTORY_TAG, agreed)
        return Run(self._client, agreed)

    def _first_run(self, name: str) -> Run:
        """That of the first version."""
        search = partial(self._client.search_model_versions, f"name = '{name}'")
        made = {int(found.version): found.run_id for found in _every(search) if found.run_id}
        if not made:
            reason = f"there is no registered model '{name}', or no run made a version of it"
            raise RegistryError(f"{reason}; run: anomaly-vae calibrate CONFIG --model URI")
        return Run(self._client, made[min(made)])

    # ------------------------------------------------------------ fetching

    @_translate_errors
    def fetch(self, uri: str, cache: Path | None = None) -> Fetched:
        """A bundle folder for a ``models:/`` or ``runs:/`` URI, or for a folder.

        Args:
            uri: which.
            cache: a folder of `cache_bundle`; a version whose sound copy is there is not fetched.

        Raises:
            RegistryError: no such model, alias, version or run.
        """
        match = MODEL_URI.fullmatch(uri)
        if match:
            return self._fetch_version(uri, cache, **match.groupdict())
        if uri.startswith("runs:/"):
            return Fetched(self.download(uri), None)
        if uri.startswith("models:/"):
            raise RegistryError(f"'{uri}': expected models:/NAME@ALIAS or models:/NAME/VERSION")
        return Fetched(uri, None)

    def _fetch_version(
        self, uri: str, cache: Path | None, name: str, alias: str | None, version: str | None
    ) -> Fetched:
        found = self.by_alias(name, alias) if alias else self.version(name, str(version))
        digest = found.tags.get(DIGEST_TAG)
        if digest is None:
            raise RegistryError(f"'{uri}' was not registered by anomaly-vae: it has no digest")
        kept = cache / digest if cache else None
        if not (kept and is_sound(kept, digest)):
            kept = Path(self.download(found.uri)) / "data" / BUNDLE
        return Fetched(str(kept), digest, name, found.version, alias, found.registered_at)

    @_translate_errors
    def download(self, uri: str, to: str | Path | None = None) -> str:
        """An artifact as a local path: below ``to``, or wherever it is, or a temporary copy."""
        place = str(to) if to else None
        return str(mlflow.artifacts.download_artifacts(uri, dst_path=place)).rstrip("/")


def _database(uri: str) -> Path | None:
    """The file of an SQLite database, None for any other."""
    found = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None


def _create(file: Path) -> None:
    """Make a database that is not there; a crash leaves none, and whoever is first makes it.

    MLflow makes some sixty tables one by one, and cannot go on where it was broken off.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as place:
        whole = Path(place).absolute() / file.name
        _make_tables(f"sqlite:///{whole}")
        with locked(file.parent):
            if not os.path.lexists(file):
                whole.rename(file)


def _make_tables(uri: str) -> None:
    from mlflow.store.db import utils

    database = cast("Any", utils)  # its functions have no types
    engine = database.create_sqlalchemy_engine(uri)
    try:
        with _quiet_warnings():
            database._initialize_tables(engine)
    finally:
        engine.dispose()


def cache_bundle(fetched: Fetched, cache: Path) -> Fetched:
    """Copy a bundle into ``cache`` under its digest, verified; a sound earlier copy is kept."""
    bundle = fetched.load()
    place = cache / bundle.digest
    if not is_sound(place, bundle.digest):
        with atomic_folder(place, keep=partial(is_sound, digest=bundle.digest)) as folder:
            for name, content in bundle.files.items():
                (folder / name).write_bytes(content)
            (folder / SUMS).write_bytes((Path(fetched.path) / SUMS).read_bytes())
    return replace(fetched, path=str(place), digest=bundle.digest)


def _has_groups(bundle: Bundle) -> bool:
    return bool(bundle.calibration and bundle.calibration.groups)


def signature(schema: DataSchema, groups: bool = False) -> ModelSignature:
    """Every column optional, numbers as double, so that missing values pass.

    Only an image may not be missing; as MLflow reads its type, it may be bytes or a path. With
    ``groups`` two answers more.
    """
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType[column.spec.mlflow_type], column.name, required=column.spec.required)
        for column in schema.columns
    ]
    answers: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.double, "p_value"),
        ColSpec(DataType.boolean, "is_anomaly"),
    ]
    if groups:
        answers += [
            ColSpec(DataType.string, "group", required=False),
            ColSpec(DataType.double, "threshold"),
        ]
    return ModelSignature(Schema(columns), Schema(answers))


def _every(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search finds, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def batched(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size``, which is what one request may carry."""
    for start in range(0, len(entries), size):
        yield list(entries[start : start + size])


def _hush() -> None:
    """MLflow and Alembic tell of each migration; their warnings and errors stay."""
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
    """``fetch URI --to CACHE``: one JSON line on stdout, or one line on stderr and its code."""
    parser = argparse.ArgumentParser(prog="python -m anomaly_vae.lifecycle.registry")
    fetch = parser.add_subparsers(required=True).add_parser("fetch")
    fetch.add_argument("uri")
    fetch.add_argument("--to", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        with own_temporary_folder():
            found = Registry(create=False).fetch(options.uri, options.to)
            fetched = cache_bundle(found, options.to)
    except RegistryError as error:
        return _fail(str(error), MISSING if error.missing else FAULT)
    except BundleError as error:
        return _fail(str(error), UNFIT)
    except OSError as error:
        return _fail(f"'{options.to}': {error.strerror or error}", UNWRITABLE)
    sys.stdout.write(json.dumps(asdict(fetched)) + "\n")
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
