"""Keep the test split and the policy by which all later models of a name are judged.

They belong to the version that was promoted first, or by force. Each champion passes them on to
the next in a tag of its version, so a promotion or rollback only has to move the alias.
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
from anomaly_vae.files import strict_json
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
class FrozenTest:
    """The URI and the SHA-256 of the test rows, the policy, and the version they belong to."""

    version: str
    test_split: str
    digest: str
    policy: Mapping[str, Any]

    @classmethod
    def own(cls, version: Version) -> FrozenTest:
        """Return the test split and the policy that a version was registered with.

        Raises:
            RegistryError: the version was not registered by ``anomaly-vae calibrate``.
        """
        for tag in (TEST_TAG, TEST_DIGEST_TAG, POLICY_TAG):
            if tag not in version.tags:
                what = f"{version.name} version {version.version} has no {tag}"
                raise RegistryError(f"{what}; register it with anomaly-vae calibrate")
        test, digest = version.tags[TEST_TAG], version.tags[TEST_DIGEST_TAG]
        return cls(version.version, test, digest, policy_of(version))

    @classmethod
    def of_champion(cls, champion: Version) -> FrozenTest:
        """Return what a champion was judged by; its own if the alias was set by hand."""
        tag = champion.tags.get(FROZEN_TAG)
        if not tag:
            return cls.own(champion)
        try:
            kept = strict_json(tag)
            return cls(**{**kept, "policy": rename_reading(kept["policy"])})
        except (ValueError, TypeError, LookupError):
            raise _altered(champion, FROZEN_TAG) from None

    def tag(self) -> str:
        """Return the value of the tag `FROZEN_TAG`."""
        return json.dumps(asdict(self))

    def read(self, registry: Registry) -> pa.Table:
        """Read the test rows.

        Raises:
            RegistryError: the file is gone or was altered.
        """
        with tempfile.TemporaryDirectory() as temporary:
            content = Path(registry.download(self.test_split, temporary)).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise RegistryError(f"the frozen test split {self.test_split} was altered")
        return pq.read_table(pa.BufferReader(content))


def policy_of(version: Version) -> dict[str, Any]:
    """Return the policy that a version was registered with, empty without one."""
    try:
        policy: dict[str, Any] = rename_reading(strict_json(version.tags.get(POLICY_TAG, "{}")))
    except (ValueError, TypeError, AttributeError):
        raise _altered(version, POLICY_TAG) from None
    return policy


def _altered(version: Version, tag: str) -> RegistryError:
    where = f"{version.name} version {version.version}"
    return RegistryError(f"the tag {tag} of {where} was altered; register it again")


def frozen_test(registry: Registry, name: str) -> pa.Table | None:
    """Read the frozen test split of a registered model; None before its first promotion.

    Raises:
        RegistryError: the file is gone or was altered.
    """
    champion = registry.champion(name)
    return FrozenTest.of_champion(champion).read(registry) if champion else None
