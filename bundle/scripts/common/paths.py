"""Where the bundle lies, wherever it is run from."""

import json
from pathlib import Path

PRODUCT = "brain_mri_anomaly_segmentation"


def is_of_home(path: str | Path) -> bool:
    """Whether a path begins with the ~ of a home folder, which the shell leaves as it is in quotes and after ``=``.

    Some libraries replace it and others do not, so that one path would be two places.
    """
    first, *others = str(path).split("/")
    return first.startswith("~") and (first == "~" or bool(others))


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
