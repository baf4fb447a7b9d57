"""JSON Lines in repositories of the Hugging Face hub whose files make no one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lnlit.data.sources import JsonlSource, where
from lnlit.errors import UserError
from lnlit.interfaces import Source


class HubFiles(Source):
    """Rows of some files of a dataset repository. They are downloaded when they are first read, and then kept by
    `huggingface_hub`.

    Args:
        repository: The name of the repository (`owner/dataset`).
        files: The files in it, read in this order.
        revision: Commit or tag; pin it for a repeatable run.
    """

    def __init__(self, repository: str, files: list[str], revision: str | None = None) -> None:
        self.repository, self.files, self.revision = repository, files, revision

    def __str__(self) -> str:
        return f"{self.repository}: {', '.join(self.files)}"

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        return self._local().rows(start)

    def where(self, index: int) -> str:
        """The file and line of a row."""
        return where(self._local(), index)

    def _local(self) -> JsonlSource:
        from huggingface_hub import hf_hub_download

        try:
            paths = [
                hf_hub_download(self.repository, file, repo_type="dataset", revision=self.revision)
                for file in self.files
            ]
        except Exception as error:  # of the hub, of the network and of the disk
            message = (str(error).strip() or type(error).__name__).split("\n", 1)[0].rstrip(".")
            raise UserError(
                f"data: cannot load {self}: {message}. Check the network, or give the task a source of local files."
            ) from error
        return JsonlSource(paths)
