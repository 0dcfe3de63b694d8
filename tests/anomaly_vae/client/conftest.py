"""Provide the scoring service that the client is tested against."""

from tests.support.scoring_service import (
    address_of,
    client,
    client_of,
    keen_scanner,
    pngs,
    scan_bundle,
    scan_folder,
    scanner,
)
from tests.support.served import folder, records, served

__all__ = [
    "address_of",
    "client",
    "client_of",
    "folder",
    "keen_scanner",
    "pngs",
    "records",
    "scan_bundle",
    "scan_folder",
    "scanner",
    "served",
]
