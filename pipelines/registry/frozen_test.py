"""What the registry keeps frozen for every later model of a name: a test split and a policy.

They came with the version that was promoted first (or by force), and each champion hands them on
to the next in a tag, so that moving the alias is all that a promotion or a rollback decides by.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.registry import (
    FROZEN_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    Registry,
    Version,
)
from anomaly_vae.renames import rename_reading


@dataclass(frozen=True)
class Frozen:
    """Where the test rows lie, their digest, the policy, and the version they came with."""

    version: str
    test_split: str
    digest: str
    policy: Mapping[str, Any]

    @classmethod
    def own(cls, version: Version) -> Frozen:
        """What a version came with.

        Raises:
            RegistryError: nothing, so `anomaly-vae calibrate` did not register it.
        """
        for tag in (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG):
            if tag not in version.tags:
                what = f"{version.name} version {version.version} has no {tag}"
                raise RegistryError(f"{what}; register it with anomaly-vae calibrate")
        test, digest = version.tags[TEST_TAG], version.tags[TEST_DIGEST_TAG]
        return cls(version.version, test, digest, policy_of(version))

    @classmethod
    def of(cls, champion: Version) -> Frozen:
        """What a champion was judged by; its own, where somebody else set the alias."""
        tag = champion.tags.get(FROZEN_TAG)
        if not tag:
            return cls.own(champion)
        kept = json.loads(tag)
        return cls(**{**kept, "policy": rename_reading(kept["policy"])})

    def tag(self) -> str:
        """As the registry keeps it."""
        return json.dumps(asdict(self))

    def read(self, registry: Registry) -> pa.Table:
        """The test rows.

        Raises:
            RegistryError: they are gone or were altered.
        """
        with tempfile.TemporaryDirectory() as place:
            content = Path(registry.download(self.test_split, place)).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise RegistryError(f"the frozen test split {self.test_split} was altered")
        return pq.read_table(pa.BufferReader(content))


def policy_of(version: Version) -> dict[str, Any]:
    """Return the policy that a version was registered with, empty without one."""
    return rename_reading(json.loads(version.tags.get(POLICY_TAG, "{}")))


def frozen_test(registry: Registry, name: str) -> pa.Table | None:
    """The frozen test split of a registered model; None before its first promotion.

    Raises:
        RegistryError: it is gone or was altered.
    """
    champion = registry.champion(name)
    return Frozen.of(champion).read(registry) if champion else None
