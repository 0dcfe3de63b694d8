"""Load models, decode scoring requests, score them and encode the answers."""

__all__: list[str] = []
