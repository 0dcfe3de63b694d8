"""Select the schema and the encoding of a kind of data: tables or images.

A schema parses input data into a `RawBatch`. An encoding turns the batch into the model's input
matrix and names the columns of the model's outputs. Schemas and encodings have the same methods for
every kind, so that scoring, calibration and the pipelines need not distinguish kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.errors import BundleError

if TYPE_CHECKING:
    from anomaly_vae.images.encoding import ImageEncoding
    from anomaly_vae.images.schema import ImageSchema

Schema: TypeAlias = "TabularSchema | ImageSchema"
Encoding: TypeAlias = "TabularEncoding | ImageEncoding"


def modality(kind: str) -> tuple[type[Schema], type[Encoding]]:
    """Return the schema class and the encoding class of a kind.

    Image libraries are imported only for images.

    Raises:
        BundleError: the kind is unknown, or its libraries are not installed.
    """
    if kind == "tabular":
        return TabularSchema, TabularEncoding
    if kind != "image":
        raise BundleError(f"the model is for '{kind}' data, which this version does not know")
    try:
        from anomaly_vae.images.encoding import ImageEncoding
        from anomaly_vae.images.schema import ImageSchema
    except ImportError as error:
        reason = "a model of images needs: pip install 'anomaly-vae[images]'"
        raise BundleError(f"{error}; {reason}") from None
    return ImageSchema, ImageEncoding


def image_modality(schema: Schema, encoding: Encoding) -> tuple[ImageSchema, ImageEncoding]:
    """Narrow the types of a schema and an encoding to those of an image model.

    Raises:
        BundleError: the model is for tables.
    """
    if isinstance(schema, TabularSchema) or isinstance(encoding, TabularEncoding):
        raise BundleError("the model is for tables; choose a model of images")
    return schema, encoding
