"""Run one benchmark protocol, or the short form of every protocol if none is named."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import DATA_VARIABLE, Options, one_thread

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "tabular": ("adbench",),
    "degraded": ("adbench",),
    "transactions": ("fraud",),
    "known": ("fraud",),
    "scans": ("mri", "pneumoniamnist.npz"),
    "inserted_lesions": ("mri",),
    "scan_designs": ("mri", "pneumoniamnist.npz"),
    "parts": ("tiles",),
    "inserted_defects": ("tiles",),
    "promise": ("adbench", "fraud"),
    "merchants": ("fraud",),
    "thresholds": (),
    "guarantee": (),
    "unusual": ("mri", "pneumoniamnist.npz", "tiles", "fraud"),
    "sources": ("mri", "pneumoniamnist.npz", "tiles"),
    "watch": ("fraud",),
    "sizes": (),
    "image_sizes": (),
    "pictures": ("mri", "pneumoniamnist.npz"),
    "fitting": ("adbench",),
    "handmade": (),
    "costs": (),
    "batch": (),
    "serving": (),
    "cases": (),
    "console": (),
    "windows": ("fraud",),
    "window_features": ("fraud",),
    "reload": (),
    "promotions": (),
    "exchangeable": ("fraud",),
    "retraining": (),
    "distributed": (),
}
"""Protocol modules, each with ``run(options)``, and the data files or folders each one reads."""
SUITES = ("adbench", "oddbench")
"""Suites of the protocol ``tabular``, which are folders of the data folder."""
SEEDS = 3
"""Number of seeds per random method, unless the protocol defines its own ``SEEDS``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol, or the short form of every protocol whose data are available."""
    parsed = vars(_parser().parse_args(arguments))
    name = parsed.pop("name")
    options = Options(**parsed)
    needed = (options.suite,) if name == "tabular" else PROTOCOLS.get(name, ())
    if name and (problem := options.missing_data(needed)):
        sys.exit(problem)
    for protocol in [name] if name else PROTOCOLS:
        if problem := options.missing_data(PROTOCOLS[protocol]):
            print(f"{protocol}: {problem}\n")
        else:
            _run(protocol, options if name else replace(options, short=True))


def _run(protocol: str, options: Options) -> None:
    module = importlib.import_module(f"benchmarks.{protocol}")
    seeds = options.seeds or getattr(module, "SEEDS", SEEDS)
    with one_thread():
        module.run(replace(options, seeds=seeds))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", choices=PROTOCOLS, help="protocol; without it, all in short form"
    )
    parser.add_argument("--data", type=Path, help=f"data folder, instead of ${DATA_VARIABLE}")
    parser.add_argument(
        "--out",
        type=Path,
        default="benchmarks/results",
        help="results folder; a run resumes from it",
    )
    parser.add_argument("--seeds", type=int, default=0, help="seeds per method; 0: usual number")
    parser.add_argument(
        "--suite", choices=SUITES, default=SUITES[0], help="data sets of the protocol tabular"
    )
    parser.add_argument("--only", default="*", help="pattern of methods to run, such as 'PyOD*'")
    parser.add_argument(
        "--short", action="store_true", help="one seed on a subsample; takes minutes"
    )
    return parser


if __name__ == "__main__":
    main()
