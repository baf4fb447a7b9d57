"""Runs vLLM in the trainer's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lnlit.errors import UserError
from lnlit_vllm.core import Core
from lnlit_vllm.process import HOW_TO_INSTALL


class InProcess:
    """`Core` with its errors turned into `UserError`s."""

    reads_again = False
    restarts = 0

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise UserError("VllmEngine.where: in_process is for a trainer of one process; use 'process'.")
        with _told():
            self._core = Core(settings)

    def tensor_names(self) -> list[str]:
        with _told():
            return list(self._core.tensor_names())

    def forget(self) -> None:
        """Does nothing, because the file is read once."""

    def load(self, file: str, version: str) -> None:
        with _told():
            list(self._core.load(file, version))

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        with _told():
            answers = {answer["index"]: answer for answer in self._core.generate(requests, sampling)}
        return [answers[index] for index in range(len(requests))]

    def sleep(self) -> None:
        with _told():
            list(self._core.sleep())

    def wake(self) -> None:
        with _told():
            list(self._core.wake())

    def close(self) -> None:
        self._core.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"vLLM: {error}. {HOW_TO_INSTALL}") from error
    except Exception as error:
        raise UserError(f"vLLM: {type(error).__name__}: {error}") from error
