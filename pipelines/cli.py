"""Define the command line; each command imports only what it needs."""

from __future__ import annotations

import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable
from csv import reader as csv_reader
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from anomaly_vae import __version__
from anomaly_vae.errors import AnomalyVAEError, ConfigError
from anomaly_vae.files import own_temporary_folder
from anomaly_vae.masking import masked
from anomaly_vae.messages import NOUNS
from pipelines import console
from pipelines.batch import Engine, ExplainedRows, Format, MapFormat, Period

if TYPE_CHECKING:
    from anomaly_vae.config import Config
    from anomaly_vae.features.store import StoreOptions
    from pipelines.registry.model_uri import LoadedModel

DONE, FAULT, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: success, error, wrong usage, refused promotion, and interruption."""
TRAIN_LIBRARIES = frozenset({"matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torch"})
"""Libraries that only the extra `train` installs."""
MAX_TOP = 100_000
"""Maximum number of rows that are ranked each day."""
FLOWS = {
    ("score", "tabular"): "pipelines.batch.tables:score_files",
    ("score", "image"): "pipelines.batch.images:score_images",
    ("generate", "tabular"): "pipelines.generate.tables",
    ("generate", "image"): "pipelines.generate.images",
}
"""Function or module that implements a command, by command and kind of data."""

Function = TypeVar("Function", bound=Callable[..., Any])
JSON = "--json"
"""Option of every command: print the result as JSON on a terminal, too."""


class App(typer.Typer):
    """A command line whose commands all mention `JSON` in their help."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Register a command."""
        epilog = f"{JSON} prints the result as JSON on a terminal, too; elsewhere it is always JSON"
        register: Callable[[Function], Function] = super().command(name, epilog=epilog, **options)
        return register


app = App(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Anomaly detection with variational autoencoders: train, calibrate, score, serve.",
)


class Simulated(StrEnum):
    """A kind of simulated data."""

    TRANSACTIONS = "transactions"
    SCANS = "scans"


class Kind(StrEnum):
    """A part of the demo."""

    TABULAR = "tabular"
    IMAGE = "image"
    ALL = "all"


ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="configuration, a YAML file; see configs/")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="override a key of the configuration; may be repeated"
    ),
]
ModelURI = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="model: a bundle folder, models:/NAME@champion, models:/NAME/3 or runs:/…",
    ),
]
CsvOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--csv",
        metavar="KEY=VALUE",
        help="form of CSV files where it differs from data.csv in training: separator, decimal, "
        "encoding or null_values; may be repeated",
    ),
]
LabelPlaces = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="PATH",
        help="late labels in place of those of data.labels in the configuration: files, folders or "
        "globs; may be repeated; none: no late labels",
    ),
]
History = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="rows before the input, which feed the windows of data.windows and are not scored; "
        "may be repeated",
    ),
]
WindowsStore = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="window store with the events before the input, in place of --history: "
        "sqlite:///FILE or redis://HOST:PORT/0; nothing is recorded in it",
    ),
]
LabelDelay = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="age from which labels are final, such as 7d, counted from the newest row; 0d: all "
        "are; default: data.label_delay of the model",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="name of the registered model")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for data, scores and pictures")] = Path("demo"),
    kind: Annotated[Kind, typer.Option(help="part of the demo to run")] = Kind.ALL,
) -> None:
    """Simulate data, train, calibrate, promote and score a model, and show the results."""
    from pipelines.demo.demo import demo as run_demo

    kinds = ("tabular", "image") if kind is Kind.ALL else (str(kind),)
    console.result(run_demo(out, kinds))


@app.command()
def simulate(
    kind: Annotated[Simulated, typer.Argument(help="kind of data to simulate")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
    rows: Annotated[int, typer.Option(min=1, help="number of transactions or scans")] = 20_000,
    seed: Annotated[int, typer.Option(help="random seed; the same seed gives the same data")] = 0,
) -> None:
    """Write simulated data with labels."""
    from pipelines.demo.simulate import write_scans, write_transactions

    write = write_scans if kind is Simulated.SCANS else write_transactions
    console.result(write(out, rows, seed))


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a model on the training split and record the run in MLflow."""
    from anomaly_vae.training.distributed import process_group
    from anomaly_vae.training.fit import assist_fit
    from pipelines.training.train import train as fit

    with process_group() as group:
        if group.rank:  # torchrun started this process to help the first
            assist_fit()
        else:
            console.result(fit(_config(config, overrides)).result())


@app.command()
def calibrate(
    config: ConfigPath,
    model: ModelURI,
    overrides: Overrides = None,
    no_alias: Annotated[
        bool,
        typer.Option("--no-alias", help="register the version, but leave challenger where it is"),
    ] = False,
) -> None:
    """Choose the threshold, evaluate the test split and register the model as challenger."""
    from anomaly_vae.lifecycle.registry import CHALLENGER
    from pipelines.training.calibrate import calibrate as run_calibrate

    alias = None if no_alias else CHALLENGER
    console.result(run_calibrate(_config(config, overrides), model, alias=alias).result())


@app.command()
def evaluate(
    model: ModelURI,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="labelled CSV or Parquet files; for images a CSV manifest, or a folder with "
            "subfolders named like labels",
        ),
    ],
    label: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="column with the labels; of folders: label"),
    ],
    positive: Annotated[str, typer.Option(help="label that means anomaly")] = "1",
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="number of rows that people can review"),
    ] = None,
    labels: LabelPlaces = None,
    csv: CsvOptions = None,
    history: History = None,
    label_delay: LabelDelay = None,
    masks: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="masks of anomalies in images, named like these"),
    ] = None,
) -> None:
    """Evaluate a model on labelled data."""
    from pipelines.reports.report import evaluate_files

    source = _open_model(model)
    answer = evaluate_files(
        source,
        data,
        label,
        positive,
        top,
        _csv_options(csv),
        label_delay=label_delay,
        labels=labels,
        history=history or (),
        masks=masks,
    )
    console.result({"model": source.to_json(), **answer})


@app.command()
def thresholds(
    model: ModelURI,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="rows to count on; default: what the model recorded"),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="column with the labels")
    ] = None,
    positive: Annotated[str, typer.Option(help="label that means anomaly")] = "1",
    per_day: Annotated[
        bool, typer.Option("--per-day", help="list the alerts of each day, too")
    ] = False,
    entity: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="column of which each value counts once a day, such as a customer; default: that "
            "of the configuration",
        ),
    ] = None,
    choose: Annotated[
        float | None,
        typer.Option(metavar="ALPHA", help="print the lines of the configuration for this alpha"),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="picture to write")] = Path(
        "thresholds.png"
    ),
    labels: LabelPlaces = None,
    label_delay: LabelDelay = None,
    csv: CsvOptions = None,
    history: History = None,
) -> None:
    """Show what other thresholds would come to: alerts a day, precision, recall and cost."""
    from pipelines.reports import thresholds as flow

    if choose is not None and not 0 < choose < 1:
        raise typer.BadParameter(f"--choose {choose:g} must lie between 0 and 1")
    source, options = _open_model(model), _csv_options(csv)
    late = labels, label_delay, history or ()
    question = flow.Question(data or (), label, positive, per_day, entity, choose, options, *late)
    console.result(flow.thresholds(source, question, out))


@app.command()
def promote(
    name: Name,
    version: Annotated[
        str | None, typer.Option(help="version to promote; default: the challenger")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="promote even against the rules; needs --reason")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="reason for --force, which is recorded")
    ] = None,
    traffic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="recent rows, without labels, to compare decisions on; tables only"
        ),
    ] = None,
    labels: LabelPlaces = None,
) -> None:
    """Promote a version to champion if it passes the rules on the frozen test split, or exit 3."""
    from pipelines.promotion import promote as flow
    from pipelines.promotion.show import show

    if force != bool(reason):
        raise typer.BadParameter("--force and --reason TEXT, which is recorded, go together")
    decision = flow.promote(_registry(), name, version, reason, traffic or (), labels)
    show(decision)
    console.result(decision.result())
    if not decision.promoted:
        raise typer.Exit(REFUSED)


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str | None, typer.Option(help="reason, which is recorded")] = None,
) -> None:
    """Restore the previous champion."""
    from pipelines.promotion import promote as flow

    console.result(flow.rollback(_registry(), name, reason))


@app.command()
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train, calibrate, evaluate and promote; unchanged inputs create no second version."""
    from pipelines.run import run as run_all

    result, promoted = run_all(_config(config, overrides))
    console.result(result)
    if not promoted:
        raise typer.Exit(REFUSED)


@app.command()
def score(
    model: ModelURI,
    input_: Annotated[
        list[str],
        typer.Option("--input", metavar="PATH", help="files, folders or globs of tables or images"),
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="folder for the scores, also s3://… or gs://…")
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="further input", show_default=False),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="engine that scores: this machine, or Ray")
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Ray cluster; default: RAY_ADDRESS, or a Ray on this machine"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of threads that score; default: one per core")
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="replace a result of other inputs, options or models"),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="K|all", help="number of largest contributions to list per row"),
    ] = None,
    explain_rows: Annotated[
        ExplainedRows,
        typer.Option(help="rows whose contributions are listed; all adds --explain 5 if not given"),
    ] = ExplainedRows.FLAGGED,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="write a heatmap of each flagged image")
    ] = False,
    maps: Annotated[
        MapFormat | None,
        typer.Option(help="write the map of each flagged image, in the pixels of its file"),
    ] = None,
    dicom_out: Annotated[
        bool,
        typer.Option("--dicom-out", help="write heatmaps of flagged DICOM images as DICOM"),
    ] = False,
    only_flagged: Annotated[
        bool, typer.Option("--only-flagged", help="write flagged rows only; all are counted")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_TOP, help="rank the N highest rows in a file of their own"
        ),
    ] = None,
    per: Annotated[Period | None, typer.Option(help="with --top: rank N rows of each day")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="with --top: rank each value of this column once, by its highest row",
        ),
    ] = None,
    columns_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="C,…", help="columns of the input to write beside the ids; may be repeated"
        ),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="format of the scores")
    ] = Format.PARQUET,
    partition_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="divide the rows into folders such as COLUMN=value"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="score only the first N rows or image files"),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            metavar="Q", help="flag at this false discovery rate instead of by the threshold"
        ),
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option(min=0, help="exit 1 if more rows are rejected; default: no limit"),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="case store to write flagged rows to; adds --explain 5 if not given"
        ),
    ] = None,
    csv: CsvOptions = None,
    history: History = None,
    windows_store: WindowsStore = None,
) -> None:
    """Score files; every row is scored, or rejected with a reason.

    The same command continues a run that was interrupted.
    """
    if fdr is not None and not 0 < fdr < 1:
        raise typer.BadParameter(f"--fdr {fdr:g} must lie between 0 and 1")
    if fdr is not None and (heatmaps or maps or dicom_out):
        raise typer.BadParameter(
            "--fdr flags images once all of them are scored, too late to draw them; leave out "
            "--heatmaps, --maps and --dicom-out"
        )
    if top is None and (per or by):
        raise typer.BadParameter(f"--{'per' if per else 'by'} is for --top N; add it")
    if ray_address is not None and (engine != Engine.RAY or not ray_address):
        missing = "is for --engine ray; add it" if ray_address else "is empty; give HOST:PORT"
        raise typer.BadParameter(f"--ray-address {missing}")
    from pipelines.batch.common import HeatmapOptions, flags_in_words
    from pipelines.batch.options import OutputOptions
    from pipelines.batch.run import RunOptions, open_recorded
    from pipelines.datasets.reading.objects import place

    folder = place(output)
    source = open_recorded(model, folder, restart)
    finish, carried = _case_import(cases, source)
    if explain is None and (cases or explain_rows == ExplainedRows.ALL):
        explain = "5"
    summary = _flow("score", source)(
        source,
        _all_paths(input_, more),
        folder,
        _explain_option(explain),
        HeatmapOptions(heatmaps, dicom_out, maps),
        fdr,
        explain_rows=explain_rows,
        run=RunOptions(workers, engine, restart, ray_address),
        outputs=OutputOptions(
            format_,
            only_flagged,
            _column_names(columns_out),
            partition_by,
            limit,
            top,
            per is not None,
            by,
        ),
        **_table_options(source, csv, history, windows_store),
        **carried,
    )
    summary |= finish(folder)
    console.info(
        f"{summary['rows']:,} {NOUNS[source.kind]}: {summary['scored']:,} scored, "
        f"{summary['flagged']:,} flagged, {summary['rejected']:,} rejected; see {output}"
    )
    console.info(flags_in_words(summary, source.kind))
    console.result(summary)
    if not summary["scored"]:
        raise AnomalyVAEError(f"nothing could be scored; see {folder / 'rejects.parquet'}")
    if max_rejects is not None and summary["rejected"] > max_rejects:
        raise AnomalyVAEError(
            f"{summary['rejected']:,} rows rejected, more than --max-rejects {max_rejects:,}; "
            f"see {folder / 'rejects.parquet'}"
        )


windows_app = App(no_args_is_help=True, help="Fill the store of past events, or forget an entity.")
app.add_typer(windows_app, name="windows")

StoreURL = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="window store: sqlite:///FILE or redis://HOST:PORT/0; default: ANOMALY_VAE_WINDOWS, "
        "or else a file in the state folder",
    ),
]


@windows_app.command(name="load")
def load_windows(
    model: ModelURI,
    input_: Annotated[
        list[str],
        typer.Option("--input", metavar="PATH", help="files, folders or globs of past events"),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="further input", show_default=False),
    ] = None,
    store: StoreURL = None,
    csv: CsvOptions = None,
) -> None:
    """Record past events, so that the windows of a service know them; repeating it is harmless."""
    from anomaly_vae.features.store import StoreOptions
    from pipelines import windows

    source = _open_model(model)
    options = _table_options(source, csv)
    paths = _all_paths(input_, more)
    store_options = StoreOptions.from_environment(store)
    console.result(windows.load_windows(source, paths, store_options, **options))


@windows_app.command(name="forget")
def forget_entity(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="column, such as CUSTOMER_ID")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="value of the column")],
    store: StoreURL = None,
) -> None:
    """Delete the past events of one entity from the window store."""
    from anomaly_vae.features.store import StoreOptions
    from pipelines import windows

    console.result(windows.forget(entity, value, StoreOptions.from_environment(store)))


@app.command()
def serve(
    model: Annotated[
        list[str], typer.Option(metavar="[NAME=]URI", help="model to serve; may be repeated")
    ],
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URI",
            help="shadow: scores the same requests as the model of its name, but never answers",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="number of worker processes")] = 1,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth", help="allow access without keys on an address other than loopback"
        ),
    ] = False,
) -> None:
    """Serve models over HTTP."""
    try:
        from serving.server import serve as run_server
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'anomaly-vae[serve]'") from None
    raise typer.Exit(run_server(model, host, port, workers, no_auth, shadow or ()))


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="model to list with its history")
    ] = None,
) -> None:
    """List registered models with their versions and aliases, or one with its history."""
    from pipelines.registry.listing import list_models

    console.result({"models": list_models(_registry(), name)})


@app.command(name="inspect")
def inspect_model(
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of the model")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file to write the card to as an HTML page")
    ] = None,
) -> None:
    """Print a model's card: its data, figures, calibration, assumptions and limits."""
    from pipelines.reports.inspect import describe

    console.result(describe(_open_model(uri), html))


labels = App(no_args_is_help=True, help="Import, export and count the labels that people give.")
app.add_typer(labels, name="labels")
Store = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar=["ANOMALY_VAE_LABELS", "ANOMALY_VAE_CASES"],
        help="label store: sqlite:///labels.db or postgresql://…",
    ),
]
LabelModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="name of the model; default: all models")
]


@labels.command(name="import")
def import_labels(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="CSV, JSON or Parquet")],
    store: Store,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="name of the model; default: column model")
    ] = None,
    id_: Annotated[
        str, typer.Option("--id", metavar="COLUMN", help="column with the ids of the rows")
    ] = "id",
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="column with anomaly, normal or unsure, or 1 or 0")
    ] = "label",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="column with the times of the verdicts; default: at, if any"
        ),
    ] = None,
    who: Annotated[
        str, typer.Option(metavar="NAME", help="reviewer of rows without one in a column who")
    ] = "import",
) -> None:
    """Store the labels in files; the same files may be imported again."""
    from pipelines.review import labels as flow

    columns = flow.Columns(id_, label, at, model, who)
    console.result(flow.import_labels(store, files, columns))


@labels.command(name="export")
def export_labels(
    store: Store,
    out: Annotated[Path, typer.Option(metavar="FILE", help="file to write: .parquet or .csv")],
    model: LabelModel = None,
) -> None:
    """Write the newest label of each id, and which reviewers disagree with it."""
    from pipelines.review import labels as flow

    console.result(flow.export_labels(store, out, model))


@labels.command(name="stats")
def label_stats(store: Store, model: LabelModel = None) -> None:
    """Count the labels by verdict and by reviewer, and the conflicts."""
    from pipelines.review import labels as flow

    console.result(flow.count_labels(store, model))


cases = App(no_args_is_help=True, help="Import, export, count and delete cases for review.")
app.add_typer(cases, name="cases")
CaseStoreURL = Annotated[
    str,
    typer.Option(
        "--cases",
        metavar="URL",
        envvar="ANOMALY_VAE_CASES",
        help="case store: sqlite:///cases.db or postgresql://…",
    ),
]
LabelStoreURL = Annotated[
    str,
    typer.Option(
        "--labels",
        metavar="URL",
        envvar="ANOMALY_VAE_LABELS",
        help="label store; default: that of the cases",
        show_default=False,
    ),
]
Sample = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", min=0, max=1, help="share of the other rows of which cases are made too"
    ),
]


class CaseStatus(StrEnum):
    """The state of a case."""

    OPEN = "open"
    DECIDED = "decided"
    SNOOZED = "snoozed"


@cases.command(name="import")
def import_cases(
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="results of score")],
    store: CaseStoreURL,
    model: Annotated[
        str | None,
        typer.Option(metavar="URI", help="model of the results; default: the one they name"),
    ] = None,
    sample: Sample = None,
) -> None:
    """Make cases of the flagged rows of results; the same results may be imported again."""
    from pipelines.batch import case_import as flow
    from pipelines.datasets.reading.objects import place

    options = flow.CaseOptions.from_environment(store, sample)
    found = {}
    for folder in map(place, folders):
        found[str(folder)] = flow.import_result(folder, options, flow.recorded_model(folder, model))
    console.result({"results": found})


@cases.command(name="export")
def export_cases(
    store: CaseStoreURL,
    out: Annotated[Path, typer.Option(metavar="FILE", help="file to write: .parquet or .csv")],
    model: LabelModel = None,
    status: Annotated[CaseStatus | None, typer.Option(help="state; default: all cases")] = None,
    label_store: LabelStoreURL = "",
) -> None:
    """Write cases with their labels to a file."""
    from pipelines.review import cases as flow

    chosen = None if status is None else status.value
    console.result(flow.export_cases(store, out, label_store, model, chosen))


@cases.command(name="stats")
def case_stats(
    store: CaseStoreURL, model: LabelModel = None, label_store: LabelStoreURL = ""
) -> None:
    """Count the cases by state, and estimate the precision of the flags."""
    from pipelines.review import cases as flow

    console.result(flow.count_cases(store, label_store, model))


@cases.command(name="prune")
def prune_cases(
    store: CaseStoreURL,
    days: Annotated[
        float,
        typer.Option(metavar="N", min=0.01, help="age in days", envvar="ANOMALY_VAE_CASES_DAYS"),
    ],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder of the scans", envvar="ANOMALY_VAE_CASES_IMAGES"),
    ] = None,
) -> None:
    """Delete old cases and counts; labels are kept."""
    from pipelines.review import cases as flow

    console.result(flow.prune_cases(store, days, images))


class PathShape(StrEnum):
    """The shape of a path through latent space."""

    LINEAR = "linear"
    SPHERICAL = "spherical"


class Colour(StrEnum):
    """The value that the colours of a map show."""

    P_VALUE = "p_value"
    SCORE = "score"
    LABEL = "label"


class Corruption(StrEnum):
    """A corruption of images before they are denoised."""

    NONE = "none"
    COARSE = "coarse"
    PIXEL = "pixel"
    MASK = "mask"
    DOWNSAMPLE = "downsample"


InputPaths = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="PATH", help="tables or images; default: samples of the model"),
]
MorePaths = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH]...", help="further input", show_default=False)
]
OutFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="file to write: .parquet, .csv (tables) or .png (images, maps)"
    ),
]
Rows = Annotated[
    int | None,
    typer.Option(min=1, help="number of samples without input, or of images to draw"),
]
Seed = Annotated[int, typer.Option(help="random seed; the same seed gives the same output")]
Steps = Annotated[int, typer.Option(min=2, help="number of points on each path")]


@app.command()
def sample(model: ModelURI, out: OutFile, rows: Rows = None, seed: Seed = 0) -> None:
    """Generate rows or images from the model."""
    _generate("sample", model, out, rows, seed)


@app.command()
def reconstruct(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write the model's reconstruction of each row or image."""
    _generate("reconstruct", model, out, _all_paths(input_, more), rows, seed)


@app.command()
def interpolate(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    path: Annotated[
        PathShape, typer.Option(help="shape of the path: a straight line or an arc")
    ] = PathShape.LINEAR,
    steps: Steps = 9,
    seed: Seed = 0,
) -> None:
    """Write the path through latent space from the first row or image to the second."""
    _generate("interpolate", model, out, _all_paths(input_, more), steps, seed, str(path))


@app.command()
def traverse(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    dim: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="latent dimension; may be repeated; default: all, of images the most visible 3, "
            "or principal components if there are more than 48",
        ),
    ] = None,
    span: Annotated[float, typer.Option(help="distance to move in both directions")] = 3.0,
    steps: Steps = 7,
) -> None:
    """Write how a row or an image changes along each latent dimension."""
    _generate("traverse", model, out, _all_paths(input_, more), dim or None, span, steps)


@app.command()
def latent(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    color: Annotated[
        Colour | None,
        typer.Option(help="colours of a map; default: p_value, or score if uncalibrated"),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="draw images over the latent plane; needs 2 latents")
    ] = False,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write the latent means of rows or images, or a map of them (.png)."""
    colour = str(color) if color else None
    _generate("latent", model, out, _all_paths(input_, more), rows, seed, colour, grid)


@app.command()
def denoise(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    corruption: Annotated[
        Corruption | None,
        typer.Option(help="corruption of images; default: as in training; none: noisy input"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(min=0, help="strength of the corruption; default: as configured"),
    ] = None,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write each row repaired, or each image corrupted and denoised."""
    kind = str(corruption) if corruption else None
    _generate("denoise", model, out, _all_paths(input_, more), rows, seed, kind, strength)


def _table_options(
    source: LoadedModel,
    csv: list[str] | None,
    history: list[str] | None = None,
    windows_store: str | None = None,
) -> dict[str, Any]:
    store = None if windows_store is None else _store_options(windows_store)
    given = {"csv": _csv_options(csv), "history": history, "windows_store": store}
    options = {name: value for name, value in given.items() if value}
    if options and source.bundle.manifest["kind"] != "tabular":
        name = next(iter(options)).replace("_", "-")
        raise ConfigError(f"--{name} is for models of tables; leave it out")
    return options


def _store_options(url: str) -> StoreOptions:
    from anomaly_vae.features.store import StoreOptions

    if not url:
        raise typer.BadParameter("--windows-store is empty; give the URL of a window store")
    return StoreOptions.from_environment(url)


def _csv_options(options: list[str] | None) -> dict[str, Any]:
    """Parse options such as separator=; whose keys are those of data.csv."""
    parsed: dict[str, Any] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not value:
            raise typer.BadParameter(f"--csv '{option}': expected KEY=VALUE, such as separator=;")
        parsed[key] = (*parsed.get(key, ()), value) if key == "null_values" else value
    return parsed


def _generate(command: str, model: str, *arguments: Any) -> None:
    """Run a command of `pipelines.generate` for the model's kind of data."""
    source = _open_model(model)
    console.result(getattr(_flow("generate", source), command)(source.bundle, *arguments))


def _flow(command: str, source: LoadedModel) -> Any:
    """Import the function or module of `FLOWS` for the model's kind of data."""
    return pkgutil.resolve_name(FLOWS[command, source.kind])


def _case_import(
    cases: str | None, source: LoadedModel
) -> tuple[Callable[[Path], dict[str, Any]], dict[str, Any]]:
    """Return a function that makes cases of a result, and arguments of its scoring.

    Raises:
        ConfigError: the address of the store is wrong, or the extra `review` is missing.
    """
    if not cases:
        return lambda _: {}, {}
    from pipelines.batch import case_import

    options = case_import.CaseOptions.from_environment(cases)
    carried = case_import.carried_columns(options, source)

    def finish(folder: Path) -> dict[str, Any]:
        return {"cases": case_import.import_when_finished(folder, options, source)}

    return finish, carried


def _all_paths(given: list[str] | None, more: list[str] | None) -> list[str]:
    return [*(given or ()), *(more or ())]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command and exit with its code."""
    if not os.environ.get("ANOMALY_VAE_DEBUG"):
        warnings.simplefilter("ignore")
    with own_temporary_folder():
        code = _exit_code()
    sys.exit(code)


def _exit_code() -> int:
    with console.masked_output():
        return _run()


def _run() -> int:
    try:
        arguments = sys.argv[1:]
        console.print_json(JSON in arguments)
        _check_torchrun(arguments)
        code: Any = app([a for a in arguments if a != JSON], standalone_mode=False)
    except AnomalyVAEError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        console.info("interrupted")
        return INTERRUPTED
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror}" if error.filename else str(error))
    except Exception as error:  # noqa: BLE001  # one line instead of a traceback
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error
            vars(error)["message"] = masked(str(error))  # before it is broken over lines
            error.show()
            return USAGE
        return _unexpected(error)
    return code if isinstance(code, int) else DONE


def _check_torchrun(arguments: list[str]) -> None:
    """Refuse to run any command but train several times at once."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
    if several and arguments[:1] != ["train"]:
        raise ConfigError(
            "torchrun starts several processes, which only train can share; leave it out"
        )


def _unexpected(error: Exception) -> int:
    if os.environ.get("ANOMALY_VAE_DEBUG"):
        traceback.print_exc()
        return FAULT
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_LIBRARIES:
        return _fail(f"{error}; install it with: pip install 'anomaly-vae[train]'")
    text = " ".join(masked(str(error)).split())[:300]
    return _fail(
        f"unexpected {type(error).__name__}: {text} (ANOMALY_VAE_DEBUG=1 shows where; "
        "please report it)"
    )


def _fail(message: str) -> int:
    console.info(f"error: {message}")
    return FAULT


def _config(path: Path, overrides: list[str] | None) -> Config:
    from anomaly_vae.config import load_config

    return load_config(path, overrides or [])


def _registry() -> Any:
    from pipelines.registry.model_uri import open_registry

    return open_registry()


def _open_model(uri: str) -> LoadedModel:
    from pipelines.registry.model_uri import open_model

    return open_model(uri)


def _column_names(options: list[str] | None) -> tuple[str, ...]:
    """Return the names in lists that are separated by commas; quotes enclose a name with one.

    Raises:
        BadParameter: a name is empty.
    """
    names = [name for row in csv_reader(options or (), skipinitialspace=True) for name in row]
    if options and not all(names):
        raise typer.BadParameter(f"--columns-out '{options[0]}': expected names such as A,B")
    return tuple(dict.fromkeys(names))


def _explain_option(explain: str | None) -> int | str | None:
    """Return the number of contributions to list, "all" or None.

    Raises:
        BadParameter: ``explain`` is neither a positive number nor "all".
    """
    if explain is None or explain == "all":
        return explain
    if explain.isdecimal() and int(explain) > 0:
        return int(explain)
    raise typer.BadParameter(f"--explain '{explain}': expected a number or all")


if __name__ == "__main__":
    main()
