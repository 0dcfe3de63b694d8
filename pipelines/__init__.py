"""Command line, files and flows around the library."""
