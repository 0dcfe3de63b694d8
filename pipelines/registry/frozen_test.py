"""Keep the test split and the policy by which all later models of a name are judged.

They belong to the version that was promoted first, by force, or at the last renewal. Each champion
passes them on to the next in a tag of its version, so a promotion or rollback only has to move the
alias. Rows never change; labels that arrived later are kept beside them, in revisions.
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
    Run,
    Version,
)
from anomaly_vae.renames import rename_reading

LATE_LABELS, EXCLUDED = "late_labels", "excluded_test"
"""Keys of a policy: the source of late labels, and the SHA-256 of the test split whose rows were
not used to train the version."""
NEWEST, SEEN_UNTIL = "newest_row", "seen_until"
"""Keys of a policy: the times of the newest row of the data, and of the last row that trained or
calibrated the version, in seconds since 1970."""


@dataclass(frozen=True)
class FrozenTest:
    """The URI and the SHA-256 of the test rows, the policy, and the version they belong to."""

    version: str
    test_split: str
    digest: str
    policy: Mapping[str, Any]
    later_promotions: int = 0
    """Number of promotions that were decided on the test rows after the first one."""
    labels: str | None = None
    """URI of the current revision of the labels; None for those of the test rows."""
    labels_digest: str | None = None
    """SHA-256 of that revision."""

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
            raise altered(champion, FROZEN_TAG) from None

    def tag(self) -> str:
        """Return the value of the tag `FROZEN_TAG`, without entries that have their defaults."""
        defaults = {"later_promotions": 0, "labels": None, "labels_digest": None}
        content = asdict(self).items()
        return json.dumps({k: v for k, v in content if k not in defaults or v != defaults[k]})

    def read(self, registry: Registry) -> pa.Table:
        """Read the test rows.

        Raises:
            RegistryError: the file is gone or was altered.
        """
        return read_artifact(registry, self.test_split, self.digest, "the frozen test split")

    def read_labels(self, registry: Registry) -> pa.Table | None:
        """Read the current revision of the labels; None if the test rows have their first ones.

        Raises:
            RegistryError: the file is gone or was altered.
        """
        if self.labels is None:
            return None
        digest = str(self.labels_digest)
        return read_artifact(registry, self.labels, digest, "the labels of the frozen test split")


def read_artifact(registry: Registry, uri: str, digest: str, what: str) -> pa.Table:
    """Read a table that is an artifact, and check its SHA-256.

    Args:
        registry: the registry.
        uri: the URI of a Parquet file.
        digest: the SHA-256 of the file.
        what: the name of the file in messages.

    Raises:
        RegistryError: the file is gone or was altered.
    """
    with tempfile.TemporaryDirectory() as temporary:
        content = Path(registry.download(uri, temporary)).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise RegistryError(f"{what} {uri} was altered")
    return pq.read_table(pa.BufferReader(content))


def write_artifact(run: Run, table: pa.Table, name: str, folder: str | None = None) -> str:
    """Log a table as a Parquet file of a run, and return the SHA-256 of the file.

    ``{digest}`` in the name stands for the first 16 characters of the SHA-256.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "table.parquet"
        pq.write_table(table, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        run.log_file(path.rename(path.with_name(name.format(digest=digest[:16]))), folder)
    return digest


def policy_of(version: Version) -> dict[str, Any]:
    """Return the policy that a version was registered with, empty without one."""
    try:
        policy: dict[str, Any] = rename_reading(strict_json(version.tags.get(POLICY_TAG, "{}")))
    except (ValueError, TypeError, AttributeError):
        raise altered(version, POLICY_TAG) from None
    return policy


def altered(version: Version, tag: str) -> RegistryError:
    """Return the error for a tag that cannot be read."""
    where = f"{version.name} version {version.version}"
    return RegistryError(f"the tag {tag} of {where} was altered; register it again")


def champions_test(registry: Registry, name: str) -> FrozenTest | None:
    """Return what the champion of a model was judged by; None before its first promotion."""
    champion = registry.champion(name)
    return FrozenTest.of_champion(champion) if champion else None


def is_set_apart(version: Version, test: FrozenTest | None) -> bool:
    """Return whether the rows of a test split were set apart when a version was trained.

    They were if they are the version's own test rows, or were excluded. Versions of older releases
    do not record what was excluded and are trusted.
    """
    policy, own = policy_of(version), version.tags.get(TEST_DIGEST_TAG)
    return test is None or EXCLUDED not in policy or test.digest in (policy[EXCLUDED], own)
