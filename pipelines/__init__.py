"""Run the command line: train, calibrate, promote, score and report."""

__all__: list[str] = []
