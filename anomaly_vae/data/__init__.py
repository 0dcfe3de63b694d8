"""Read tables: schemas, type inference, splits and encoding."""

from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema

__all__ = ["RawBatch", "RowProblem", "TabularSchema"]
