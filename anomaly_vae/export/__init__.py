"""Export trained models to ONNX scoring graphs and compare the graphs with torch."""

__all__: list[str] = []
