"""One name for every source: a packaged data set, or a file or folder in a format we read."""

from __future__ import annotations

from pathlib import Path

from verifier.data.dataset import Dataset
from verifier.errors import SpecError


def open_dataset(source: str | Path, *, label: str | int = -1, size: tuple[int, int] | None = None) -> Dataset:
    """Read a data set by what its name looks like.

    Args:
        source: a packaged name ("digits"), or a path: .npz, .csv, .bin (CIFAR), IDX images
            (their labels beside them), or a folder of CIFAR .bin files or of images by class.
        label: label column of a .csv.
        size: (height, width) for image folders.
    Raises:
        SpecError: nothing of that name, or a format we do not read.
    """
    from verifier.data.packaged import PACKAGED, packaged

    path = Path(source)
    if str(source) in PACKAGED and not path.suffix:
        return packaged(str(source))
    if not path.exists():
        raise SpecError(f"'{source}' is neither a file nor a packaged data set ({', '.join(PACKAGED)})")
    if path.is_dir():
        from verifier.data.cifar import load_cifar
        from verifier.data.folder import load_folder

        return load_cifar(path) if any(path.glob("*.bin")) else load_folder(path, size)
    return _open_file(path, label)


def _open_file(path: Path, label: str | int) -> Dataset:
    if path.suffix == ".npz":
        from verifier.data.arrays import load_npz

        return load_npz(path)
    if path.suffix == ".csv":
        from verifier.data.table import load_csv

        return load_csv(path, label)
    if path.suffix == ".bin":
        from verifier.data.cifar import load_cifar

        return load_cifar(path)
    if "idx" in path.name:
        from verifier.data.idx import load_idx

        return load_idx(path)
    raise SpecError(f"{path}: expected .npz, .csv, .bin (CIFAR), an IDX file or a folder; convert it to .npz")
