"""The command line: thin, and lazy, so that each command imports only what it needs."""

from __future__ import annotations

import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_vae import __version__
from anomaly_vae.errors import AnomalyVAEError, ConfigError
from anomaly_vae.files import own_temporary_folder
from pipelines import console

if TYPE_CHECKING:
    from anomaly_vae.artifacts.bundle import Bundle
    from anomaly_vae.config import Config
    from pipelines.registry.model_uri import LoadedModel

DONE, FAULT, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
TRAINED_WITH = frozenset({"matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torch"})
"""Libraries that only the extra `train` installs."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Anomaly detection with variational autoencoders: train, calibrate, score, serve.",
)


class Simulated(StrEnum):
    """What can be simulated."""

    TRANSACTIONS = "transactions"
    SCANS = "scans"


class Kind(StrEnum):
    """What the demo shows."""

    TABULAR = "tabular"
    IMAGE = "image"
    ALL = "all"


class Engine(StrEnum):
    """Where a batch is scored."""

    LOCAL = "local"


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file, see configs/")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="override a key of the configuration"),
]
ModelURI = Annotated[
    str,
    typer.Option(
        metavar="URI", help="bundle folder, models:/NAME@champion, models:/NAME/3, runs:/…"
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="of the registered model")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for data, scores, pictures")] = Path("demo"),
    kind: Annotated[Kind, typer.Option(help="which part of it")] = Kind.ALL,
) -> None:
    """Simulate, train, calibrate, register, promote and score, and show what was found."""
    from pipelines.demo.demo import demo as run_demo

    kinds = ("tabular", "image") if kind is Kind.ALL else (str(kind),)
    console.result(run_demo(out, kinds))


@app.command()
def simulate(
    kind: Annotated[Simulated, typer.Argument(help="what to simulate")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
    rows: Annotated[int, typer.Option(min=1, help="how many")] = 20_000,
    seed: Annotated[int, typer.Option(help="same seed, same rows")] = 0,
) -> None:
    """Write simulated data with labels."""
    from pipelines.demo.simulate import write_scans, write_transactions

    write = write_scans if kind is Simulated.SCANS else write_transactions
    console.result(write(out, rows, seed))


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Fit a model on the training split and record the run."""
    from pipelines.training.train import train as fit

    console.result(fit(_config(config, overrides)).result())


@app.command()
def calibrate(config: ConfigPath, model: ModelURI, overrides: Overrides = None) -> None:
    """Choose the threshold, evaluate the test split, register a challenger."""
    from pipelines.training.calibrate import calibrate as run_calibrate

    console.result(run_calibrate(_config(config, overrides), model).result())


@app.command()
def evaluate(
    model: ModelURI,
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="labelled CSV or Parquet; a CSV manifest")
    ],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="the column with the labels")],
    positive: Annotated[str, typer.Option(help="the label that means anomaly")] = "1",
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="how many can be looked into")
    ] = None,
) -> None:
    """Compare a detector's decisions with labels."""
    from pipelines.reports.report import evaluate_files

    source = _source(model)
    answer = evaluate_files(source, data, label, positive, top)
    console.result({"model": source.to_json(), **answer})


@app.command()
def promote(
    name: Name,
    version: Annotated[str | None, typer.Option(help="absent: the challenger")] = None,
    force: Annotated[bool, typer.Option("--force", help="promote against the policy")] = False,
    reason: Annotated[str | None, typer.Option(help="why, with --force; recorded")] = None,
    traffic: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="recent rows, no labels needed, to compare flags on"),
    ] = None,
) -> None:
    """Make a version champion, if it holds on the frozen test split; else exit 3."""
    from pipelines.promotion import promote as flow

    if force != bool(reason):
        raise typer.BadParameter("--force and --reason TEXT, which is recorded, go together")
    decision = flow.promote(_registry(), name, version, reason, traffic or ())
    flow.show(decision)
    console.result(decision.result())
    if not decision.promoted:
        raise typer.Exit(REFUSED)


@app.command()
def rollback(
    name: Name, reason: Annotated[str | None, typer.Option(help="why; recorded")] = None
) -> None:
    """Make the previous champion champion again."""
    from pipelines.promotion import promote as flow

    console.result(flow.rollback(_registry(), name, reason))


@app.command()
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train, calibrate, evaluate and promote; the same inputs make no second version."""
    from pipelines.run import run as run_all

    answer, promoted = run_all(_config(config, overrides))
    console.result(answer)
    if not promoted:
        raise typer.Exit(REFUSED)


@app.command()
def score(
    model: ModelURI,
    input_: Annotated[list[str], typer.Option("--input", metavar="PATH", help="tables or images")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="folder for the scores")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", show_default=False)
    ] = None,
    engine: Annotated[Engine, typer.Option(help="where")] = Engine.LOCAL,  # noqa: ARG001  # one so far
    explain: Annotated[str | None, typer.Option(metavar="K|all", help="reasons per row")] = None,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="images: draw each flagged one")
    ] = False,
    dicom_out: Annotated[
        bool, typer.Option("--dicom-out", help="images: the same as DICOM, of those that are DICOM")
    ] = False,
    fdr: Annotated[
        float | None, typer.Option(metavar="Q", help="flag at this false discovery rate instead")
    ] = None,
    max_rejects: Annotated[
        int | None, typer.Option(min=0, help="exit 1 above; absent: any")
    ] = None,
) -> None:
    """Score files: every row is scored or rejected with a reason."""
    if fdr is not None and not 0 < fdr < 1:
        raise typer.BadParameter(f"--fdr {fdr:g} must lie between 0 and 1")
    if fdr is not None and (heatmaps or dicom_out):
        raise typer.BadParameter(
            "--fdr decides once every image is scored, too late to draw; leave out --heatmaps and "
            "--dicom-out"
        )
    source, paths = _source(model), [*input_, *(more or [])]
    summary = _scored(source, paths, output, _most(explain), heatmaps, dicom_out, fdr)
    console.say(
        f"{summary['rows']:,} rows: {summary['scored']:,} scored, {summary['flagged']:,} flagged, "
        f"{summary['rejected']:,} rejected; see {output}"
    )
    console.result(summary)
    if not summary["scored"]:
        raise AnomalyVAEError(f"nothing could be scored; see {output / 'rejects.parquet'}")
    if max_rejects is not None and summary["rejected"] > max_rejects:
        raise AnomalyVAEError(
            f"{summary['rejected']:,} rows rejected, more than --max-rejects {max_rejects:,}; "
            f"see {output / 'rejects.parquet'}"
        )


@app.command()
def serve(
    model: Annotated[list[str], typer.Option(metavar="[NAME=]URI", help="may be repeated")],
    shadow: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]URI", help="scored beside the model of its name, silently"),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="listen beyond loopback without keys")
    ] = False,
) -> None:
    """Answer /score over HTTP."""
    try:
        from serving.server import serve as run_server
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'anomaly-vae[serve]'") from None
    raise typer.Exit(run_server(model, host, port, workers, no_auth, shadow or ()))


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="of one, with its history")
    ] = None,
) -> None:
    """List registered models with their versions and aliases, or the history of one."""
    from pipelines.registry.listing import registered

    console.result({"models": registered(_registry(), name)})


@app.command(name="inspect")
def inspect_model(
    uri: Annotated[str, typer.Argument(metavar="URI", help="of the model")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the card as a page, too")
    ] = None,
) -> None:
    """Print a model's card: data, figures, calibration and what it assumes, limits."""
    from pipelines.reports.inspect import describe

    console.result(describe(_source(uri), html))


class PathShape(StrEnum):
    """How a path leads through latent space."""

    LINEAR = "linear"
    SPHERICAL = "spherical"


class Colour(StrEnum):
    """What the colours of a map say."""

    P_VALUE = "p_value"
    SCORE = "score"
    LABEL = "label"


class Corruption(StrEnum):
    """What is done to images before they are denoised."""

    NONE = "none"
    COARSE = "coarse"
    PIXEL = "pixel"
    MASK = "mask"
    DOWNSAMPLE = "downsample"


InputPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="PATH", help="tables or images; absent: samples from the prior"
    ),
]
MorePaths = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH]...", help="more input", show_default=False)
]
OutFile = Annotated[Path, typer.Option(metavar="FILE", help=".parquet or .csv; images .png")]
Rows = Annotated[
    int | None, typer.Option(min=1, help="how many, without input; of images, how many to draw")
]
Seed = Annotated[int, typer.Option(help="same seed, same rows")]
Steps = Annotated[int, typer.Option(min=2, help="points on each path")]


@app.command()
def sample(model: ModelURI, out: OutFile, rows: Rows = None, seed: Seed = 0) -> None:
    """Draw rows or images from the model."""
    bundle = _source(model).bundle
    console.result(_generator(bundle).sample(bundle, out, rows, seed))


@app.command()
def reconstruct(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write each row or image as the model would have expected it."""
    bundle, paths = _source(model).bundle, [*(input_ or ()), *(more or ())]
    console.result(_generator(bundle).reconstruct(bundle, out, paths, rows, seed))


@app.command()
def interpolate(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    path: Annotated[PathShape, typer.Option(help="straight, or on a sphere")] = PathShape.LINEAR,
    steps: Steps = 9,
    seed: Seed = 0,
) -> None:
    """Write the path from the first row or image to the second through latent space."""
    bundle, paths = _source(model).bundle, [*(input_ or ()), *(more or ())]
    console.result(_generator(bundle).interpolate(bundle, out, paths, steps, seed, str(path)))


@app.command()
def traverse(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    dim: Annotated[
        list[int] | None,
        typer.Option(min=0, help="latent; repeat; absent: all, of images the most active"),
    ] = None,
    span: Annotated[float, typer.Option(help="how far to both sides")] = 3.0,
    steps: Steps = 7,
) -> None:
    """Write what each latent dimension does to a row or an image."""
    bundle, paths = _source(model).bundle, [*(input_ or ()), *(more or ())]
    console.result(_generator(bundle).traverse(bundle, out, paths, dim or None, span, steps))


@app.command()
def latent(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    color: Annotated[
        Colour | None, typer.Option(help="of a map; absent: p_value, or score if uncalibrated")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="images, 2 latents: what lies where instead")
    ] = False,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write the latent means of rows or images, or a map of them (.png)."""
    bundle, paths = _source(model).bundle, [*(input_ or ()), *(more or ())]
    colour = str(color) if color else None
    console.result(_generator(bundle).latent(bundle, out, paths, rows, seed, colour, grid))


@app.command()
def denoise(
    model: ModelURI,
    out: OutFile,
    input_: InputPaths = None,
    more: MorePaths = None,
    corruption: Annotated[
        Corruption | None,
        typer.Option(help="of images; absent: as in training; none: the input is noisy itself"),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, help="of the corruption; absent: as configured")
    ] = None,
    rows: Rows = None,
    seed: Seed = 0,
) -> None:
    """Write each row repaired, or each image corrupted and denoised."""
    bundle, paths = _source(model).bundle, [*(input_ or ()), *(more or ())]
    kind = str(corruption) if corruption else None
    generator = _generator(bundle)
    console.result(generator.denoise(bundle, out, paths, rows, seed, kind, strength))


def _generator(bundle: Bundle) -> Any:
    """What generates for the model's kind of data."""
    if bundle.manifest["kind"] == "image":
        from pipelines.generate import images

        return images
    from pipelines.generate import tables

    return tables


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command and turn its end into an exit code."""
    if not os.environ.get("ANOMALY_VAE_DEBUG"):
        warnings.simplefilter("ignore")
    with own_temporary_folder():
        code = _exit_code()
    sys.exit(code)


def _exit_code() -> int:
    try:
        code: Any = app(standalone_mode=False)
    except AnomalyVAEError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        return INTERRUPTED
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror}" if error.filename else str(error))
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the parser
            error.show()
            return USAGE
        if os.environ.get("ANOMALY_VAE_DEBUG"):
            raise
        return _unexpected(error)
    return code if isinstance(code, int) else DONE


def _unexpected(error: Exception) -> int:
    if isinstance(error, ModuleNotFoundError) and error.name in TRAINED_WITH:
        return _fail(f"{error}; install it with: pip install 'anomaly-vae[train]'")
    text = " ".join(str(error).split())[:300]
    return _fail(
        f"unexpected {type(error).__name__}: {text} (ANOMALY_VAE_DEBUG=1 shows where; "
        "please report it)"
    )


def _fail(message: str) -> int:
    console.say(f"error: {message}")
    return FAULT


def _scored(
    source: LoadedModel,
    paths: list[str],
    output: Path,
    explain: int | str | None,
    heatmaps: bool,
    dicom: bool,
    fdr: float | None,
) -> dict[str, Any]:
    if source.bundle.manifest["kind"] == "image":
        from pipelines.batch.images import HeatmapOptions, score_images

        return score_images(source, paths, output, explain, HeatmapOptions(heatmaps, dicom), fdr)
    if heatmaps or dicom:
        raise ConfigError("--heatmaps and --dicom-out are for models of images; leave them out")
    from pipelines.batch.tables import score_files

    return score_files(source, paths, output, explain, fdr)


def _config(path: Path, overrides: list[str] | None) -> Config:
    from anomaly_vae.config import load_config

    return load_config(path, overrides or [])


def _registry() -> Any:
    from pipelines.registry.model_uri import registry

    return registry()


def _source(uri: str) -> LoadedModel:
    from pipelines.registry.model_uri import open_source

    return open_source(uri)


def _most(explain: str | None) -> int | str | None:
    if explain is None or explain == "all":
        return explain
    if explain.isdecimal() and int(explain) > 0:
        return int(explain)
    raise typer.BadParameter(f"--explain '{explain}': expected a number or all")


if __name__ == "__main__":
    main()
