"""Show flagged cases to reviewers, and models to administrators, as web pages."""

__all__: list[str] = []
