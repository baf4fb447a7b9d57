"""Sends a run's pictures to its loggers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lnlit.report.picture import Picture, png


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that accepts images with the same method as Lightning's `WandbLogger`."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None: ...


def log_pictures(loggers: Iterable[Logger], folder: str, pictures: Iterable[Picture], step: int) -> None:
    """Logs each picture as `folder`/name with every logger that accepts images."""
    from matplotlib.image import imread

    boards = [each for each in loggers if isinstance(each, TensorBoardLogger | ImageLogger)]
    for picture in pictures if boards else ():
        image_HWC = (imread(io.BytesIO(png(picture.draw)))[..., :3] * 255).round().astype("uint8")
        for board in boards:
            if isinstance(board, TensorBoardLogger):
                board.experiment.add_image(f"{folder}/{picture.name}", image_HWC, step, dataformats="HWC")
            else:
                board.log_image(f"{folder}/{picture.name}", [image_HWC], step)
