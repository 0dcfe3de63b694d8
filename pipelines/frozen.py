"""The test split that the registry keeps frozen, for every later model to be judged on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.errors import RegistryError
from anomaly_vae.registry import POLICY_TAG, TEST_DIGEST_TAG, TEST_TAG, Registry

FROZEN = (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG)
"""Tags that the first promotion copies from the version to the registered model."""


def frozen_test(registry: Registry, name: str) -> pa.Table | None:
    """The frozen test split of a registered model; None before its first promotion.

    Raises:
        RegistryError: it is gone or was altered.
    """
    tags = registry.frozen(name)
    return read_test(registry, tags) if TEST_TAG in tags else None


def read_test(registry: Registry, tags: Mapping[str, str]) -> pa.Table:
    """The test split that a version's or a registered model's tags point to.

    Raises:
        RegistryError: it is gone or was altered.
    """
    with tempfile.TemporaryDirectory() as place:
        content = Path(registry.download(tags[TEST_TAG], place)).read_bytes()
    if hashlib.sha256(content).hexdigest() != tags[TEST_DIGEST_TAG]:
        raise RegistryError(f"the frozen test split {tags[TEST_TAG]} was altered")
    return pq.read_table(pa.BufferReader(content))
