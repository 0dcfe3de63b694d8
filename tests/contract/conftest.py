"""Provide the scoring service whose answers are compared with those of other ways to score."""

from tests.support.scoring_service import address_of

__all__ = ["address_of"]
