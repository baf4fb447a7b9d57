"""Decides whether an exception is the user's to fix: one raised by a part that the configuration names usually is."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lnlit import own
from lnlit.errors import UserError, causes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_PART = re.compile(r"Problem with given class_path '([^']+)'")
#: Parts that users add to a Trainer, as folders of `lightning.pytorch`.
_ADDED = ("callbacks", "loggers", "profilers", "tuner")
_OURS = Path(__file__).parent.parent
_LONGEST = 300
#: Exceptions whose text says what is wrong. Lightning's own is known by its name: a stage of a search, which is ready
#: in a second, need not import Lightning for it.
_SPEAKING = (ValueError, TypeError, RuntimeError, ImportError)
_LIGHTNINGS = "MisconfigurationException"


def built(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """What a checked configuration names, built. Raises `UserError` as `while_building` says."""
    with building():
        return vars(parser.instantiate_classes(config))


@contextmanager
def building() -> Iterator[None]:
    """Turns exceptions of constructors named in the configuration into `UserError`s."""
    try:
        yield
    except Exception as error:
        blamed(while_building(error), error)


def while_building(error: Exception) -> Exception:
    """A `UserError` for an exception of a constructor named in the configuration, or `error` itself if lnlit is at
    fault.

    jsonargparse wraps the exception in those of all types that it tried.
    """
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    frames = _frames(chain[-1])
    built = max((index for index, frame in enumerate(frames) if "jsonargparse" in frame.filename), default=-1) + 1
    if any(_is_ours(frame) for frame in frames[built:]):
        return error
    parts = [found[1].replace(":", ".").rpartition(".")[2] for cause in chain for found in _PART.finditer(str(cause))]
    return UserError(f"{parts[0]}: {_said(chain[-1])}" if parts else _said(chain[-1]))


def blamed(verdict: Exception, error: Exception) -> NoReturn:
    """Raises the verdict in place of an error. If the verdict is the error itself, it keeps its causes, among which a
    full disk is found."""
    if verdict is error:
        raise error
    raise verdict from error


def while_running(error: Exception) -> Exception:
    """A `UserError` for an exception of one of Lightning's callbacks, loggers, profilers or tuners, or of a user's own
    file; else `error` itself."""
    frames = _frames(error)
    if own.place(error) and not _is_ours(frames[-1]):
        return UserError(f"{_said(error)} (--debug shows the traceback)")
    after_ours = max((index for index, frame in enumerate(frames) if _is_ours(frame)), default=-1) + 1
    for frame in frames[after_ours:]:
        parts = Path(frame.filename).parts
        if "lightning" in parts and any(folder in parts for folder in _ADDED):
            return UserError(f"trainer, {Path(frame.filename).stem}: {_said(error)}")
    return error


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split())
    words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."
    speaks = isinstance(error, _SPEAKING) or type(error).__name__ == _LIGHTNINGS
    if mine := own.place(error):
        return f"{mine}{type(error).__name__}: {words}"
    if not words or not speaks:  # a KeyError's text is the key alone
        words = f"{type(error).__name__}: {words}"
    if isinstance(error, ImportError):
        return f"{words.rstrip('.')}. Install what it needs, or leave it out."
    return words


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_OURS)
