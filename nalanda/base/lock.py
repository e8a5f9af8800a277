"""One process at a time in a folder.

lock = Lock(folder)
lock.acquire()            # or RunError at once, naming who holds it
is_held(folder)           # only asks
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import struct
import sys
import time
from pathlib import Path
from typing import IO

from nalanda.base import io
from nalanda.base.errors import RunError

_held: set[Path] = set()


class Lock:
    """An exclusive lock on a folder that dies with its process, however that ends.

    A POSIX record lock: the system drops it when the process is gone, and forked children do not inherit it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self.file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises RunError at once, naming who holds it."""
        key = self.path.resolve()
        if key in _held:
            raise RunError(f"{self.path.parent}: this process already works in that folder")
        with io.full_disk_is_clear(self.path.parent):
            try:
                io.make_folder(self.path.parent)
                file = self.path.open("a+", encoding="utf-8")
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise self._unusable(error) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise self._unusable(error) from None
            raise RunError(
                f"{self.path.parent}: held by {holder}; wait for it, stop it, or choose another folder"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds without saying whose it is
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()} since {since}".encode())
        self.file = file
        _held.add(key)

    def _unusable(self, error: OSError) -> RunError:
        reason = error.strerror or str(error)
        return RunError(f"{self.path.parent}: cannot be a run folder ({reason}); choose another folder")

    def release(self) -> None:
        """Gives the lock back; the file stays, empty, because removing it would race with a waiter."""
        if self.file is not None:
            _held.discard(self.path.resolve())
            self.file.truncate(0)
            self.file.close()
            self.file = None


def is_held(folder: Path) -> bool:
    """Whether a process works in `folder`. Only asks: takes and writes nothing, so any reader may call it."""
    path = folder / "run.lock"
    # Closing any handle of the file would drop the lock that this very process has on it: never open it then.
    if path.resolve() in _held:
        return True
    try:
        with path.open("rb") as file:
            if sys.platform == "darwin":  # struct flock: start, length, process, type, whence
                asked = struct.pack("qqihh", 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
                return bool(
                    struct.unpack("qqihh", fcntl.fcntl(file, fcntl.F_GETLK, asked))[3] != fcntl.F_UNLCK
                )
            # struct flock: type, whence, start, length, process
            asked = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return bool(struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    except OSError:
        return False
