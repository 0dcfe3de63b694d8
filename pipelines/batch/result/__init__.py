"""Define what a result of batch scoring consists of: its plan, parts, counts and folder."""

__all__: list[str] = []
