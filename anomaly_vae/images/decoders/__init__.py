"""Decode the files of each image format into pixels."""

__all__: list[str] = []
