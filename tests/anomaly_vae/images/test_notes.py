"""What training says of the images that it read."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.images.notes import image_notes
from anomaly_vae.images.schema import ImageSchema, Seen, image_batch
from anomaly_vae.types import Fit


def notes(schema: ImageSchema, **seen: float) -> tuple[str, ...]:
    return image_notes(image_batch(np.zeros((4, 1, 2, 2), np.float32), (), Seen(**seen)), schema)


@pytest.mark.parametrize(
    ("channels", "coloured", "said"),
    [(1, 3, "3 of 4 images are in colour"), (1, 0, ""), (3, 0, "none of the 4"), (3, 1, "")],
)
def test_colours_are_noted_where_the_model_does_not_suit(
    channels: int, coloured: int, said: str
) -> None:
    found = notes(ImageSchema(16, channels), in_colour=coloured)
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ("pad", "2 of 4 images are not square and are padded, so that nothing is lost"),
        ("crop", "lose 25% of their pixels, which no score sees; set data.fit: pad"),
        ("stretch", "are stretched; set data.fit: pad"),
    ],
)
def test_shapes_are_noted_with_what_becomes_of_them(fit: Fit, said: str) -> None:
    (note,) = notes(ImageSchema(16, 1, fit=fit), oblong=2, outside=0.5)
    assert said in note


def test_windows_that_hide_everything_are_noted() -> None:
    (note,) = notes(ImageSchema(16, 1), saturated=2)
    assert "nearly all pixels of 2 images black or white" in note


def test_images_that_are_too_large_for_the_wanted_spacing_are_noted() -> None:
    schema = ImageSchema(16, 1, fit="pad", spacing=2.5)
    (note,) = notes(schema, reduced=1)
    assert note.startswith("1 of 4 images are wider or higher than 40 mm and reduced")
    assert notes(schema) == ()
