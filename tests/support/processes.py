"""Start processes for functions of tests, with packages that take long to import."""

from __future__ import annotations

from multiprocessing import get_context

FORKED = get_context("forkserver")
"""Makes processes by forking one that has imported the review stores and has no threads."""
FORKED.set_forkserver_preload(["pytest", "anomaly_vae.review", "alembic.command", "psycopg2"])
