"""Serve a bundle as an MLflow Python model, which ``mlflow.pyfunc.load_model`` loads."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.data.dataframes import frame_to_table
from anomaly_vae.errors import DataError
from anomaly_vae.scoring.detector import Detector

__all__ = ["DetectorModel"]


class DetectorModel:
    """A detector that scores data frames; MLflow calls `predict`.

    Args:
        detector: a calibrated detector.

    Examples:
        >>> import mlflow  # doctest: +SKIP
        >>> model = mlflow.pyfunc.load_model("models:/fraud@champion")  # doctest: +SKIP
        >>> list(model.predict(frame).columns)  # doctest: +SKIP
        ['score', 'p_value', 'is_anomaly', 'unusual_input']
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score every row of a data frame, or raise an error for the whole frame.

        Args:
            frame: N rows with the columns of the training data. A model of images reads the
                column ``image``: paths, or the bytes of files.

        Returns:
            N rows with the index of ``frame``: ``score`` (in the unit of the bundle, higher is
            more anomalous), ``p_value``, ``is_anomaly`` and ``unusual_input`` (the reason why a row
            is unlike the training rows at all, else None); for a model calibrated by group also
            ``group``, whose scores decided, and its ``threshold``.

        Raises:
            DataError: a cell does not fit its column, or an image cannot be read.
        """
        table: pa.Table = frame_to_table(frame)
        batch = self.detector.scorer.schema.from_arrow(table)
        if batch.problems:
            raise DataError(str(batch.problems[0]), column=batch.problems[0].column)
        found = self.detector.detect(batch)
        reasons = found.unusual_input
        columns = {name: values for name, values in vars(found).items() if values is not None}
        columns["unusual_input"] = pd.Series(
            [None] * len(batch) if reasons is None else reasons, frame.index, object
        )
        return pd.DataFrame(columns, index=frame.index)


def _load_pyfunc(path: str) -> DetectorModel:
    """Load a bundle folder: the entry point that MLflow calls."""
    return DetectorModel(load_bundle(path).detector)
