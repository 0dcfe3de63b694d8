"""The mean log-density of held-out rows, which single rows cannot decide."""

import torch

from anomaly_vae.training.held_out import winsorized_mean


def test_outliers_count_as_the_last_rows_within() -> None:
    log_prob = torch.arange(11.0).repeat(2, 1)
    log_prob[1, 0], log_prob[1, -1] = -1e6, 1e6
    torch.testing.assert_close(winsorized_mean(log_prob), torch.full((2,), 5.0))


def test_each_candidate_has_its_own_mean() -> None:
    log_prob = torch.stack([torch.zeros(5), torch.ones(5)])
    assert winsorized_mean(log_prob).tolist() == [0.0, 1.0]
