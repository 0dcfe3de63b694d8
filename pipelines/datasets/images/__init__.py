"""List, read and split images: files, folders, manifests and layouts of folders."""

__all__: list[str] = []
