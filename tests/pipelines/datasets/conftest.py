"""Share the fixtures of folders and manifests."""

from tests.support.image_folders import folder, listing

__all__ = ["folder", "listing"]
