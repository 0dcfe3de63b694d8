"""Simulate card transactions with frauds and scans with lesions."""

from anomaly_vae.simulation.scans import simulate_scans
from anomaly_vae.simulation.transactions import simulate_transactions

__all__ = ["simulate_scans", "simulate_transactions"]
