"""Export trained models to ONNX scoring graphs and compare them with torch."""

__all__: list[str] = []
