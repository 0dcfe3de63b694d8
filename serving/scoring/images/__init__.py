"""Serve image models: uploads, regions and heatmaps."""

__all__: list[str] = []
