"""Read tables, infer column types, split rows and encode them as matrices."""

from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema

__all__ = ["RawBatch", "RowProblem", "TabularSchema"]
