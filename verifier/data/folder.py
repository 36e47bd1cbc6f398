"""Reader of a folder of images with one sub-folder a class; needs Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm"}


def load_folder(path: str | Path, size: tuple[int, int] | None = None) -> Dataset:
    """Images [n, C, H, W] in [0, 1], C = 1 if every image is grey, else 3; classes are the sub-folders.

    Args:
        size: (height, width) to resize to; default: the images' own size, which must be one.
    Raises:
        SpecError: no images, fewer than two classes, different sizes, or an unreadable file.
    """
    path = Path(path)
    classes = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    files = [(f, label) for label, name in enumerate(classes) for f in sorted((path / name).iterdir())]
    files = [(f, label) for f, label in files if f.suffix.lower() in _SUFFIXES]
    if len(classes) < 2 or not files:
        raise SpecError(f"{path}: expected a sub-folder of images for each of at least two classes, found {classes}")
    images = [read_image(f, size) for f, _ in files]
    planes = max(image.shape[0] for image in images)
    images = [np.repeat(i, planes, axis=0) if i.shape[0] < planes else i for i in images]
    for (file, _), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise SpecError(f"{file}: size {image.shape[1:]} differs from {images[0].shape[1:]}; give `size`")
    return Dataset(np.stack(images), np.array([k for _, k in files]), tuple(classes), "image", (0.0, 1.0), path.name)


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """One image file as float32 [C, H, W] in [0, 1]; C is 1 for a grey image, else 3.

    Raises:
        SpecError: no image, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise SpecError(f"{path}: reading images needs Pillow; install it or convert the data to .npz") from None
    try:
        with Image.open(path) as file:
            grey = file.mode in ("1", "L", "I", "I;16", "F")
            picture = file.convert("L" if grey else "RGB")
            if size is not None:
                picture = picture.resize((size[1], size[0]))
            pixels = np.asarray(picture, dtype=np.float32) / 255.0
    except (OSError, ValueError, SyntaxError) as error:
        raise SpecError(f"{path}: not a readable image: {error}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
