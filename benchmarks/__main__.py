"""`python -m benchmarks NAME [options]`; without a name the short form of every protocol."""

from __future__ import annotations

import importlib
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import DATA_VARIABLE, Options, one_thread

PROTOCOLS = ("tabular", "degraded", "transactions", "scans", "reload")
"""Modules of this package, each with ``run(options)``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol, or all of them in short."""
    given = vars(_parser().parse_args(arguments))
    name = given.pop("name")
    options = Options(**given)
    with one_thread():
        for protocol in [name] if name else PROTOCOLS:
            module = importlib.import_module(f"benchmarks.{protocol}")
            module.run(options if name else replace(options, short=True))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=PROTOCOLS, help="absent: all of them, in short")
    parser.add_argument("--data", type=Path, help=f"data folder; absent: ${DATA_VARIABLE}")
    parser.add_argument("--out", type=Path, default="benchmarks/results", help="results; resumed")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each random method")
    parser.add_argument("--only", default="*", help="methods to run, such as 'PyOD*'")
    parser.add_argument("--short", action="store_true", help="one seed on a subsample, minutes")
    return parser


if __name__ == "__main__":
    main()
