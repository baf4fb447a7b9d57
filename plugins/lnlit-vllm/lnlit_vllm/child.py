"""The program that `Process` runs: JSON lines over an inherited socket. Does not import lnlit.

python -m lnlit_vllm.child SOCKET PARENT
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

_GRACE_S = 2.0


def main(handle: int, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = socket.socket(fileno=handle)
    connection.set_inheritable(False)
    # If the other end is gone, nobody would read an error.
    with contextlib.suppress(ConnectionError), connection, connection.makefile("rw", encoding="utf-8") as stream:
        _serve(stream)


def _serve(stream: Any) -> None:
    core: Any = None
    for line in stream:
        method, arguments = json.loads(line)
        try:
            if method == "start":
                from lnlit_vllm.core import Core, import_vllm

                import_vllm()
                gc.freeze()  # vLLM collects garbage while it starts, and need not look at what was imported
                core = Core(*arguments)
            else:
                for item in getattr(core, method)(*arguments):
                    _send(stream, {"item": item})
            _send(stream, {"done": True})
        except ConnectionError:
            raise
        except Exception as error:
            told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            _send(stream, {"error": told})
    if core is not None:
        core.close()


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _end_with(parent: int) -> None:
    """Ends this process when the trainer has ended. The socket does not show it, because processes that the trainer
    forked keep it open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(_GRACE_S)
    os.killpg(0, signal.SIGKILL)  # vLLM's workers too


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
