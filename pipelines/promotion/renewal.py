"""Decide whether a challenger's own test split replaces the frozen one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.data.splitting import DAY
from anomaly_vae.lifecycle.registry import Version
from pipelines.datasets.dataset import TRAINED_UNTIL
from pipelines.promotion.refresh import RefreshedTest
from pipelines.registry.frozen_test import (
    NEWEST,
    SEEN_UNTIL,
    FrozenTest,
    is_set_apart,
    policy_of,
)


@dataclass(frozen=True)
class Renewal:
    """Why a frozen test split is due to be replaced, and what prevents it, if anything does."""

    reason: str
    obstacle: str | None = None


def renewed_test(frozen: FrozenTest, own: FrozenTest) -> FrozenTest:
    """Return a version's own test split under the rules that are frozen already."""
    rules = PromotionConfig.model_fields
    about_rows = {key: value for key, value in own.policy.items() if key not in rules}
    frozen_rules = {key: value for key, value in frozen.policy.items() if key in rules}
    return FrozenTest(own.version, own.test_split, own.digest, {**about_rows, **frozen_rules})


def due(test: RefreshedTest, own: FrozenTest, policy: PromotionConfig) -> str | None:
    """Return why the frozen test split is due to be replaced by another one; None if it is not.

    Args:
        test: the frozen test split.
        own: the challenger's own one.
        policy: the frozen rules.
    """
    limits, decided = policy.renew_test, 1 + test.frozen.later_promotions
    if limits is None or own.digest == test.frozen.digest:
        return None
    if limits.promotions is not None and decided >= limits.promotions:
        return f"{decided} promotions were decided on it, {limits.promotions} are allowed"
    age = _age_days(test, own.policy)
    if limits.days is not None and age is not None and age > limits.days:
        return f"it is {age:.3g} days older than the newest row, {limits.days:g} are allowed"
    return None


def _age_days(test: RefreshedTest, newer: Mapping[str, Any]) -> float | None:
    """Return the days from the newest row of a test split to that of newer data."""
    seconds, newest = test.labelled.seconds, newer.get(NEWEST)
    if seconds is None or newest is None or np.isnan(seconds).all():
        return None
    return float(newest - np.nanmax(seconds)) / DAY


def seen_rows(test: RefreshedTest, version: Version, bundle: Bundle) -> str | None:
    """Return why rows of a test split may have trained or calibrated a version; None if not.

    Args:
        test: a test split whose rows were not set apart when the version was trained.
        version: the version.
        bundle: its bundle.
    """
    seconds, policy = test.labelled.seconds, policy_of(version)
    known = [policy.get(SEEN_UNTIL), bundle.manifest["data"].get(TRAINED_UNTIL)]
    until = max((moment for moment in known if moment is not None), default=None)
    if seconds is None or until is None:
        return (
            f"without times (data.time) nothing shows that its rows did not train version "
            f"{version.version}"
        )
    seen = int((~(seconds > until)).sum())
    if not seen:
        return None
    moment = dt.datetime.fromtimestamp(until, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return (
        f"{seen:,} of its {len(seconds):,} rows may have trained or calibrated version "
        f"{version.version}, whose rows reach until {moment} UTC"
    )


def not_set_apart(test: RefreshedTest, challenger: Version, bundle: Bundle) -> str | None:
    """Return why rows of a test split may have trained a challenger; None if they have not."""
    apart = is_set_apart(challenger, test.frozen)
    return None if apart else seen_rows(test, challenger, bundle)
