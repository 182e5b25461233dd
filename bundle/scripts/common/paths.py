"""Where the bundle lies, wherever it is run from."""

import json
from pathlib import Path

PRODUCT = "brain_mri_anomaly_segmentation"


def bundle_root() -> str:
    """The folder that holds ``configs``, ``models`` and ``scripts``, as an absolute path."""
    return str(Path(__file__).resolve().parents[2])


def config_files(*names: str | Path) -> list[Path]:
    """The files of a config and its override configs, after those that they override themselves.

    Args:
        names: Names of the bundle's own configs, or files.
    """
    folder = Path(bundle_root()) / "configs"
    files = [name if isinstance(name, Path) else folder / f"{name}.json" for name in names]
    base = json.loads(files[0].read_text()).get("_base_")
    return [*(folder / name for name in (base.split(", ") if base else [])), *files]


def bundle_version() -> str:
    """The version of the bundle, as its ``metadata.json`` tells it."""
    return str(json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())["version"])
