"""Talk among a few ranks of one machine, of which the first has something that all of them use.

All ranks make the same calls in the same order. A rank that fails says so to the others and does not wait for them. So
none of them waits for an answer that nobody will give, and each raises what went wrong.

They talk over sockets. Unlike a collective, these say which rank fails first, end when a process ends, and may be used
by a thread while another one is in a collective.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from lnlit.errors import UserError
from lnlit.models.ranks import all_gather, my_place

#: How long the first rank waits for the others to connect, in seconds, after all of them have said where they are.
_CONNECT_S = 300.0
#: The longest path of a folder for a socket, whose own path may have 107 bytes.
_LONGEST = 60


class _Failure(NamedTuple):
    """What went wrong on a rank. `is_users` is true for a `UserError`."""

    rank: int
    is_users: bool
    said: str


class _Failed(Exception):
    """Another rank has failed."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.said)
        self.failure = failure

    def error(self) -> Exception:
        """What this rank raises."""
        rank, is_users, said = self.failure
        return UserError(said) if is_users else RuntimeError(f"rank {rank}, which shares an engine: {said}")


class Neighbours:
    """This rank and those that it shares something with: `size` consecutive ranks of one machine.

    Made by all ranks of a run at once. `told` is what each rank of the group said about itself, in the order of ranks.

    Args:
        size: The number of ranks in each group. Raises `UserError` unless it divides their number, and each group is on
            one machine.
        mine: What this rank says about itself: plain data.
    """

    def __init__(self, size: int, mine: Any) -> None:
        rank, ranks = my_place()
        if ranks % size:
            raise UserError(
                f"an engine is shared by {size} ranks, and the run has {ranks}, which is no multiple. Change the "
                "number of the engine's devices (such as tensor_parallel_size), or of the trainer's."
            )
        first = rank - rank % size
        self.rank, self.is_first = rank, rank == first
        self._number = 0
        with contextlib.ExitStack() as stack:
            meeting = stack.enter_context(_meeting(size)) if self.is_first else None
            place = "" if meeting is None else str(meeting.getsockname())
            everyone = all_gather((socket.gethostname(), place, mine))
            group = everyone[first : first + size]
            _check_machines([machine for machine, *_ in everyone], size)
            self.told = [each for *_, each in group]
            if meeting is not None:
                self._others = _accepted(meeting, size - 1)
            else:
                self._others = {first: _connected(group[0][1], rank)}

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call that all ranks of the group make. What is raised inside is raised on each of them."""
        self._number += 1
        try:
            yield
        except _Failed as failed:
            if self.is_first:  # the others only know what this rank tells them
                self._tell(failed.failure)
            raise failed.error() from None
        except Exception as error:
            is_users = isinstance(error, UserError)
            self._tell(_Failure(self.rank, is_users, str(error) if is_users else f"{type(error).__name__}: {error}"))
            raise
        except BaseException:  # nobody knows what was sent of a message
            self.close()
            raise

    def exchange(self, mine: Any, work: Callable[[list[Any]], Sequence[Any]]) -> Any:
        """Inside a `call`: what `work` makes for this rank of what all ranks of the group have. The first rank runs it,
        after all others have come here, and they return after it has run."""
        if not self.is_first:
            ((first, connection),) = self._others.items()
            self._send(first, (self._number, None, mine))
            return self._received(first, connection)
        found = {self.rank: mine, **self._heard()}
        own, *others = work([found[rank] for rank in sorted(found)])
        for rank, answer in zip(sorted(self._others), others, strict=True):
            self._send(rank, (self._number, None, answer))
        return own

    def close(self) -> None:
        """Ends all connections, also those that another thread waits at. The others are told that this rank has
        ended."""
        for connection in self._others.values():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

    def _heard(self) -> dict[int, Any]:
        """What the other ranks have, as soon as all have said it, or one has failed."""
        found: dict[int, Any] = {}
        waiting = {connection: rank for rank, connection in self._others.items()}
        while waiting:
            for connection in wait(list(waiting)):
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                found[rank] = self._received(rank, connection)
        return found

    def _received(self, rank: int, connection: Connection) -> Any:
        """What that rank says in this call."""
        while True:
            try:
                number, failure, message = connection.recv()
            except (EOFError, OSError) as error:
                raise _Failed(_Failure(rank, False, "it has ended")) from error
            if number < self._number:  # of a call in which this rank had failed before it came
                continue
            if failure is not None:
                raise _Failed(_Failure(*failure))
            return message

    def _send(self, rank: int, message: Any) -> None:
        try:
            self._others[rank].send(message)
        except OSError as error:
            raise _Failed(_Failure(rank, False, "it has ended")) from error

    def _tell(self, failure: _Failure) -> None:
        """Tells the others, but for who has failed itself. A few bytes wait in the socket until they are read."""
        for rank, connection in self._others.items():
            if rank != failure.rank:
                with contextlib.suppress(OSError):
                    connection.send((self._number, tuple(failure), None))


def _check_machines(machines: Sequence[str], size: int) -> None:
    for first in range(0, len(machines), size):
        if len(found := sorted(set(machines[first : first + size]))) > 1:
            raise UserError(
                f"an engine is shared by {size} consecutive ranks of one machine, and ranks {first} to "
                f"{first + size - 1} are on {' and '.join(found)}. Start a multiple of {size} ranks on each machine."
            )


@contextlib.contextmanager
def _meeting(size: int) -> Iterator[socket.socket]:
    """A socket to connect to, in a folder that only this user can open."""
    short = "/tmp" if len(tempfile.gettempdir()) > _LONGEST else None
    with tempfile.TemporaryDirectory(prefix="lnlit-", dir=short) as folder, socket.socket(socket.AF_UNIX) as meeting:
        meeting.bind(f"{folder}/meeting")
        meeting.listen(size)
        meeting.settimeout(_CONNECT_S)
        yield meeting


def _accepted(meeting: socket.socket, count: int) -> dict[int, Connection]:
    """The connections to the other ranks, by rank."""
    found: dict[int, Connection] = {}
    while len(found) < count:
        try:
            each = meeting.accept()[0]
        except TimeoutError as error:
            raise RuntimeError(f"{count - len(found)} ranks that share an engine did not connect") from error
        each.settimeout(None)
        connection = Connection(each.detach())
        found[connection.recv()] = connection
    return found


def _connected(place: str, rank: int) -> Connection:
    """The connection to the first rank."""
    each = socket.socket(socket.AF_UNIX)
    each.connect(place)
    connection = Connection(each.detach())
    connection.send(rank)
    return connection
