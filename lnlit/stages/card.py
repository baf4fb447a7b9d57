"""`lnlit card` and `lnlit push`: a model folder explains itself, here and on the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lnlit.checkpoint.folder import SPEC_FILE, LnlitFolder, read_provenance
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.licence import CARD
from lnlit.checkpoint.safetensors_folder import has_weights
from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded, listed, read_json, write_file, write_json
from lnlit.progress import say
from lnlit.report.card import model_card, without_folders
from lnlit.schema import read

_WRITTEN = re.compile(r"\n<!-- written by `lnlit card`; sha256 of what stands above: ([0-9a-f]{64}) -->\n\Z")
_TITLE = re.compile(r"^# (.*)$", re.MULTILINE)


def card(
    folder: str | Path,
    evaluation: str | Path | None = None,
    measured: str | Path | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model folder's card, README.md, from what its lnlit.json says; returns the file.

    Results that are given here are kept in lnlit.json, so that the card can be written again from it alone. A README.md
    that `lnlit card` has not written, or that was changed since, is refused unless `overwrite` is set.

    Args:
        folder: The model folder.
        evaluation: The folder that `lnlit eval` wrote; the model must be among those evaluated.
        measured: The JSON file that `lnlit search verify` wrote; the model must be among those measured.
        title: The heading; the folder's name by default.
        overwrite: Replace any README.md.
    """
    path = _model_folder(folder)
    file, record = path / CARD, read_json(path / SPEC_FILE)
    if not overwrite and file.exists() and not _is_ours(file.read_text(encoding="utf-8", errors="replace")):
        raise UserError(
            f"{file}: was not written by `lnlit card`, or was changed since. Rename it, or say --overwrite."
        )
    provenance = {**read_provenance(path)}
    if evaluation is not None:
        provenance["evaluation"] = _evaluated(expanded(evaluation), path)
    if measured is not None:
        provenance["measured"] = _measured(expanded(measured), path)
    if evaluation is not None or measured is not None:
        record["provenance"] = provenance
        write_json(path / SPEC_FILE, record)
    text = model_card(title or path.name, record)
    write_file(file, f"{text}\n<!-- written by `lnlit card`; sha256 of what stands above: {_digest(text)} -->\n")
    return file


def push(
    folder: str | Path, repository: str, private: bool = False, revision: str | None = None, message: str | None = None
) -> str:
    """Upload a model folder to the Hugging Face hub; returns its address.

    The folder's card is written first, unless README.md is somebody else's. The repository is made if there is none.
    In lnlit.json, paths of this machine become the last of their names. The token is the one of `hf auth login` or
    HF_TOKEN.

    Args:
        folder: The model folder.
        repository: OWNER/NAME.
        private: Make a new repository private; one that is there and public is refused.
        revision: The branch, which is made if there is none; the repository's main branch by default.
        message: The commit's message.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError

    path = _model_folder(folder)
    if repository.count("/") != 1:
        raise UserError(f"push: expected a repository as OWNER/NAME, got {repository!r}.")
    if (token := get_token()) is None:
        raise UserError("push: there is no token of the hub. Run: hf auth login; or set HF_TOKEN.")
    if not token.isascii():
        raise UserError("push: the token of the hub holds letters that no token has. Set HF_TOKEN to it anew.")
    old = (path / CARD).read_text(encoding="utf-8", errors="replace") if (path / CARD).exists() else None
    if old is None:
        card(path)
    elif _is_ours(old):  # lnlit.json may say more by now
        card(path, title=_TITLE.findall(old)[0])
    files = [file for file in listed(path, "**/*") if file.is_file()]
    for file in files:
        say(f"push: {file.relative_to(path)}, {file.stat().st_size / 2**20:,.1f} MiB")
    record = json.dumps(without_folders(read_json(path / SPEC_FILE)), indent=2).encode()
    contents = [
        CommitOperationAdd(str(file.relative_to(path)), record if file == path / SPEC_FILE else str(file))
        for file in files
    ]
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise UserError(
                f"push: {repository}: is there already, and not private. Nothing was uploaded. Make it private on the "
                "hub, name another, or leave out --private."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        said = api.create_commit(
            repository, contents, commit_message=message or f"{path.name}, written by lnlit", revision=revision
        )
    except (HTTPError, HFValidationError, OSError) as error:  # HTTPError is that of the hub's client
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"push: {repository}: {reason}. The same command tries again.") from error
    return str(getattr(said, "commit_url", None) or said)


def _model_folder(folder: str | Path) -> Path:
    path = resolve(str(folder)).resolve()
    if not LnlitFolder().recognises(path) or not has_weights(path):
        raise UserError(f"{folder}: is no model folder of lnlit, which `lnlit import` and `lnlit export` write.")
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ours(text: str) -> bool:
    match = _WRITTEN.search(text)
    return match is not None and _digest(text[: match.start()]) == match[1]


@dataclass(frozen=True)
class _Cell:
    """What of one of an evaluation's results a card shows."""

    task: str
    thinking: str | None
    figure: str
    value: float | None
    low: float | None
    high: float | None
    questions: int


@dataclass(frozen=True)
class _Difference(_Cell):
    better: int
    worse: int


@dataclass(frozen=True)
class _Evaluation:
    models: Mapping[str, Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]] = ()
    against: str | None = None


@dataclass(frozen=True)
class _Timed:
    name: str
    measured: Mapping[str, float]


@dataclass(frozen=True)
class _Times:
    engine: str
    dtype: str
    models: Sequence[Mapping[str, Any]]


def _evaluated(folder: Path, model: Path) -> dict[str, Any]:
    """What `lnlit eval` found out about a model."""
    file = folder / "results.json"
    data: _Evaluation = read(_Evaluation, read_json(file, "the results of `lnlit eval`"), f"{file}:", others=True)
    sources = {name: about.get("source") for name, about in data.models.items()}
    name = _among(sources, model, f"{folder}: evaluated were")

    def own(kind: type[_Cell], rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
        places = [(at, row) for at, row in enumerate(rows) if row.get("model") == name]
        return [asdict(read(kind, row, f"{file}: {key}[{at}]", others=True)) for at, row in places]

    return {
        "against": None if data.against is None else str(sources.get(data.against) or data.against),
        "results": own(_Cell, data.results, "results"),
        "differences": own(_Difference, data.differences, "differences"),
    }


def _measured(file: Path, model: Path) -> dict[str, Any]:
    """What `lnlit search verify` measured of a model and of the first of its models, usually the parent."""
    data: _Times = read(_Times, read_json(file, "what `lnlit search verify` measured"), f"{file}:", others=True)
    timed = [read(_Timed, each, f"{file}: models[{at}]", others=True) for at, each in enumerate(data.models)]
    found = {each.name: each.measured for each in timed}
    name = _among({each: each for each in found}, model, f"{file}: measured were")
    first, theirs = next(iter(found.items()))
    parent = {} if first == name else {"parent": theirs, "parent_name": first}
    return {"engine": data.engine, "dtype": data.dtype, "measured": found[name], **parent}


def _among(sources: Mapping[str, Any], model: Path, what: str) -> str:
    """The name under which a model folder is known."""
    for name, source in sources.items():
        if source is not None and expanded(str(source)).resolve() == model:
            return name
    raise UserError(f"{what} {_few(list(sources))}, and not {model}.{did_you_mean(model.name, sources)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
