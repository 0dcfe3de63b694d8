"""Print the progress of an estimator's fit on stderr."""

from __future__ import annotations

import sys

from anomaly_vae.training.trainer import Epoch

LINES = 10
"""Number of lines that a fit writes to a file or a notebook."""


def print_epoch(epoch: Epoch, planned: int) -> None:
    """Print a finished epoch: on a terminal into the same line, elsewhere now and then.

    Args:
        epoch: the measurements of the epoch.
        planned: number of epochs at most; a fit may stop earlier.
    """
    number = epoch.epoch + 1
    text = f"epoch {number} of at most {planned}: ELBO {epoch.validation_elbo:.2f} nats"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<60}" + ("\n" if number == planned else ""))
    elif number == planned or number % max(1, planned // LINES) == 0:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_note(note: str, verbose: int) -> None:
    """Print a note on stderr, unless the estimator is quiet."""
    if verbose:
        sys.stderr.write(f"{note}\n")
