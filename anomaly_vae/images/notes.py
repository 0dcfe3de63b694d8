"""Say in words what the images to train on have that their preparation loses."""

from __future__ import annotations

from anomaly_vae.images.schema import ImageBatch, ImageSchema
from anomaly_vae.types import Fit


def image_notes(images: ImageBatch, schema: ImageSchema) -> tuple[str, ...]:
    """Return notes on shapes, colours and windows that a model with this schema does not see."""
    return (
        *shape_note(images, schema.fit),
        *reduction_note(images, schema),
        *colour_note(images, schema.channels),
        *saturation_note(images),
    )


def shape_note(images: ImageBatch, fit: Fit) -> tuple[str, ...]:
    """Return a note on images that are not square; empty if all are."""
    count, outside = images.seen.oblong, images.seen.outside
    if not count:
        return ()
    share = f"{100 * outside / count:.0f}% of their pixels"
    consequence = {
        "pad": f"are padded, so that nothing is lost; cropping would leave out {share}",
        "crop": f"lose {share}, which no score sees; set data.fit: pad to keep them",
        "stretch": "are stretched; set data.fit: pad to keep their proportions",
    }
    return (f"{count} of {int(images.usable.sum())} images are not square and {consequence[fit]}",)


def reduction_note(images: ImageBatch, schema: ImageSchema) -> tuple[str, ...]:
    """Return a note on images that are too large for the wanted spacing; empty if none is."""
    count, total = images.seen.reduced, int(images.usable.sum())
    if not count or not isinstance(schema.spacing, float):
        return ()
    side = f"{schema.size * schema.spacing:g} mm"
    return (
        f"{count} of {total} images are wider or higher than {side} and reduced until they fit, to "
        f"pixels of more than {schema.spacing:g} mm; raise data.size or data.spacing",
    )


def colour_note(images: ImageBatch, channels: int) -> tuple[str, ...]:
    """Return a note if the model's channels do not suit the images; empty if they do."""
    count, total = images.seen.in_colour, int(images.usable.sum())
    if channels == 1 and count:
        seen = f"{count} of {total} images are in colour, but the model sees grey"
        return (f"{seen}; set data.channels: 3 if colour matters",)
    if channels == 3 and total and not count:
        return (f"none of the {total} images is in colour; data.channels: 1 suffices",)
    return ()


def saturation_note(images: ImageBatch) -> tuple[str, ...]:
    """Return a note on images whose windows make nearly all pixels black or white."""
    if not images.seen.saturated:
        return ()
    count = images.seen.saturated
    seen = f"the windows in the files make nearly all pixels of {count} images black or"
    return (f"{seen} white; set data.intensity_window: percentile",)
