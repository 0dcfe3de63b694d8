"""The progress of a fit on a terminal, in a file and in silence."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from tests.support.estimators import tiny
from tests.support.paths import ROOT
from tests.support.terminal import run_on_terminal

FIT = """
from anomaly_vae.estimators.progress import epoch_printer
from anomaly_vae.training.trainer import Epoch
print_epoch = epoch_printer()
for number in range(30):
    print_epoch(Epoch(number, 1.0, 1e-3, -1.0, 0.0, -2.5, 0.5, 3.0), 30)
"""


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 10)])
def test_a_file_gets_a_line_now_and_then(
    verbose: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 2))
    tiny(epochs=20, patience=20, verbose=verbose).fit(rows)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == lines
    assert not lines or "epoch 20 of at most 20: ELBO " in err


def test_a_terminal_gets_one_line_that_changes() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code, text = run_on_terminal([sys.executable, "-c", FIT], 80, environment)
    assert code == 0
    assert text.count("\n") == 1
    assert text.count("\r") == 30
    assert text.rstrip().endswith("epoch 30 of at most 30: ELBO -3.00 nats")
