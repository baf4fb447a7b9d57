"""Sends texts and pictures of a run to its loggers, whichever they are."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lnlit.files import write_file
from lnlit.report.picture import Picture, png


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that accepts images with the same method as Lightning's `WandbLogger`."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None: ...


#: The folder of texts and pictures beside the log of a logger that has no place for them.
FOLDER = "media"


@rank_zero_only
def log_text(loggers: Iterable[Logger], name: str, markdown: str, step: int) -> None:
    """Logs a text with every logger. One that holds no texts gets a file beside its log."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, markdown, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, columns=["step", "text"], data=[[str(step), markdown]], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, markdown, f"{name}/step-{step}.md")
        else:
            _write(logger, f"{name}/step-{step}.md", markdown)


@rank_zero_only
def log_pictures(loggers: Iterable[Logger], folder: str, pictures: Iterable[Picture], step: int) -> None:
    """Logs each picture as `folder`/name with every logger. One that holds no pictures gets a file beside its log."""
    loggers = list(loggers)
    for picture in pictures if loggers else ():
        name, drawn = f"{folder}/{picture.name}", png(picture.draw)
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, _pixels(drawn), step, dataformats="HWC")
            elif isinstance(logger, ImageLogger):
                logger.log_image(name, [_pixels(drawn)], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, _pixels(drawn), f"{name}/step-{step}.png")
            else:
                _write(logger, f"{name}/step-{step}.png", drawn)


def _pixels(drawn: bytes) -> Any:
    """A PNG as uint8 [height, width, 3]."""
    from matplotlib.image import imread

    return (imread(io.BytesIO(drawn))[..., :3] * 255).round().astype("uint8")


def _write(logger: Logger, name: str, content: str | bytes) -> None:
    if logger.save_dir is None:
        return
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir) / (logger.name or "") / version / FOLDER  # as Lightning's own loggers do
    if not folder.exists():
        rank_zero_info(f"{type(logger).__name__} holds no texts and pictures; they go to {folder}")
    write_file(folder / name, content)
