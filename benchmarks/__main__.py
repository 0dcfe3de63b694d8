"""`python -m benchmarks NAME [options]`; without a name the short form of every protocol."""

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
    "scans": ("mri", "pneumoniamnist.npz"),
    "promise": ("adbench", "fraud"),
    "thresholds": (),
    "guarantee": (),
    "sizes": (),
    "fitting": ("adbench",),
    "handmade": (),
    "costs": (),
    "serving": (),
    "reload": (),
    "promotions": (),
    "retraining": (),
}
"""Modules of this package, each with ``run(options)``, and the data that each reads."""
SEEDS = 3
"""Fits of each random method, where a protocol has no ``SEEDS`` of its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol, or all of them in short whose data are there."""
    given = vars(_parser().parse_args(arguments))
    name = given.pop("name")
    options = Options(**given)
    if name and (line := options.absent(PROTOCOLS[name])):
        sys.exit(line)
    for protocol in [name] if name else PROTOCOLS:
        if line := options.absent(PROTOCOLS[protocol]):
            print(f"{protocol}: {line}\n")
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
    parser.add_argument("name", nargs="?", choices=PROTOCOLS, help="absent: all of them, in short")
    parser.add_argument("--data", type=Path, help=f"data folder; absent: ${DATA_VARIABLE}")
    parser.add_argument("--out", type=Path, default="benchmarks/results", help="results; resumed")
    parser.add_argument("--seeds", type=int, default=0, help="fits of each; 0: as many as usual")
    parser.add_argument("--only", default="*", help="methods to run, such as 'PyOD*'")
    parser.add_argument("--short", action="store_true", help="one seed on a subsample, minutes")
    return parser


if __name__ == "__main__":
    main()
