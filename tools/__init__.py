"""Maintain the project; no installation contains these tools."""
