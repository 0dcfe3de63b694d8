"""What ``mlflow.pyfunc.load_model`` loads: a detector behind a data frame."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.data.dataframes import frame_to_table
from anomaly_vae.errors import DataError
from anomaly_vae.scoring.detector import Detector


class DetectorModel:
    """Scores data frames; every row gets an answer or the whole call an error."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns as in training → ``score``, ``p_value``, ``is_anomaly``, same index.

        Of a model with groups ``group`` and ``threshold``, too: whose scores decided, and where.
        A model of images reads the column ``image``: paths, or the bytes of files.

        Raises:
            DataError: a cell that does not fit its column, an image that cannot be read.
        """
        table: pa.Table = frame_to_table(frame)
        batch = self.detector.scorer.schema.from_arrow(table)
        if batch.problems:
            raise DataError(str(batch.problems[0]), column=batch.problems[0].column)
        found = self.detector.detect(batch)
        columns = {name: values for name, values in vars(found).items() if values is not None}
        return pd.DataFrame(columns, index=frame.index)


def _load_pyfunc(path: str) -> DetectorModel:
    """MLflow's entry point."""
    return DetectorModel(load_bundle(path).detector)
