"""Where the bundle lies, wherever it is run from."""

from pathlib import Path


def bundle_root() -> str:
    """The folder that holds ``configs``, ``models`` and ``scripts``, as an absolute path."""
    return str(Path(__file__).resolve().parents[2])
