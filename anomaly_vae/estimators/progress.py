"""Print the progress of an estimator's fit on stderr."""

from __future__ import annotations

import sys

from anomaly_vae.messages import Pace
from anomaly_vae.training.trainer import Epoch, OnEpoch

LINES = 10
"""Number of lines that a fit of at most ten minutes writes to a file or a notebook."""


def epoch_printer() -> OnEpoch:
    """Return a function that prints finished epochs of one fit.

    On a terminal they go into the same line, elsewhere there is a line for every tenth of the
    epochs, and every minute.
    """
    pace = Pace(LINES)

    def print_epoch(epoch: Epoch, planned: int) -> None:
        number = epoch.epoch + 1
        text = f"epoch {number} of at most {planned}: ELBO {epoch.validation_elbo:.2f} nats"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<60}" + ("\n" if number == planned else ""))
        elif pace.due(number, planned):
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    return print_epoch


def print_note(note: str, verbose: int) -> None:
    """Print a note on stderr, unless the estimator is quiet."""
    if verbose:
        sys.stderr.write(f"{note}\n")
