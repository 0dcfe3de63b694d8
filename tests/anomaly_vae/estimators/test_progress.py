"""The progress of a fit on a terminal, in a file and in silence."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.estimators.progress import epoch_printer
from anomaly_vae.training.trainer import Epoch
from tests.support.estimators import tiny
from tests.support.terminal import terminal_for_stderr


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
    with terminal_for_stderr() as written:
        print_epoch = epoch_printer()
        for number in range(30):
            print_epoch(Epoch(number, 1.0, 1e-3, -1.0, 0.0, -2.5, 0.5, 3.0), 30)
    (text,) = written
    assert text.count("\n") == 1
    assert text.count("\r") == 30
    assert text.rstrip().endswith("epoch 30 of at most 30: ELBO -3.00 nats")
