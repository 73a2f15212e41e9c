"""Child processes that are killed and starved, and what they leave.

A server imports the package once, and each child is forked from it: it starts in milliseconds, and
is a process of its own as a user's would be. A fault happens at a file event: a child counts what
it opens to write, renames, removes or makes below a folder, and at a given number it is killed, or
the disk is full, or the folder cannot be written to. Linux and macOS only.
"""

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
IMPORTED = ["helpers.cli", "helpers.recipe_stages", "helpers.widgets"]
LIMIT = 600  # seconds, after which a child counts as one that hangs

# Where an audit event of Python has the path that changes
CHANGES = {
    "os.rename": 1,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.mkdir": 0,
    "os.symlink": 1,
    "os.link": 1,
}
# A full disk can still do these
NEED_NO_SPACE = ("os.remove", "os.rmdir", "os.rename")


@dataclass(frozen=True)
class Fault:
    """What goes wrong below a folder, from the file event with the number `at` on.

    kind: "kill" as SIGKILL does, "full" and "read-only" of the disk, "cut": no file may have more
    than `at` bytes, as on a disk whose last bytes a writer has just used; "none" only counts.
    """

    kind: Literal["none", "kill", "full", "read-only", "cut"]
    folder: Path
    at: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    code: its exit code, the number of a signal as a negative one, or None if it had to be killed
    because it did not end. events: file events, if it came to its end.
    """

    code: int | None
    value: Any
    text: str
    events: int = 0

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


class Child:
    """A running child; `wait` returns how it ended."""

    def __init__(self, process: BaseProcess, folder: tempfile.TemporaryDirectory):
        self._process = process
        self._folder = folder

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self, seconds: float | None = LIMIT) -> Ended:
        """Wait until it has ended, or kill it."""
        self._process.join(seconds)
        hangs = self._process.is_alive()
        if hangs:
            self._process.kill()
            self._process.join()
        home = Path(self._folder.name)
        log, result = home / "log", home / "result"
        text = log.read_text(errors="replace") if log.exists() else ""
        value, events = pickle.loads(result.read_bytes()) if result.exists() else (None, 0)
        self._folder.cleanup()
        return Ended(None if hangs else self._process.exitcode, value, text, events)

    def is_alive_after(self, seconds: float) -> bool:
        """Wait at most so long: does it still run?"""
        self._process.join(seconds)
        return self._process.is_alive()


def start(call: Callable[..., Any], *arguments: Any, fault: Fault | None = None) -> Child:
    """Start `call(*arguments)` in a child. Both must be importable, or of values that pickle."""
    folder = tempfile.TemporaryDirectory(prefix="torture-")
    context = _server()
    process = context.Process(target=_work, args=(call, arguments, fault, folder.name))
    process.start()
    return Child(process, folder)


def run(call: Callable[..., Any], *arguments: Any, fault: Fault | None = None) -> Ended:
    """Run `call(*arguments)` in a child, to its end."""
    return start(call, *arguments, fault=fault).wait()


def _server() -> multiprocessing.context.ForkServerContext:
    """The context whose server has imported the package; the first child starts it."""
    # it reads these when it starts
    paths = [str(ROOT), str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _work(call: Callable[..., Any], arguments: tuple, fault: Fault | None, folder: str) -> None:
    """Do the work of a child; its result goes to a file in one step."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(ROOT)
    # its own one between processes would be left behind by a kill
    tqdm.set_lock(threading.RLock())
    counted = _Events(fault) if fault else None
    if counted:
        sys.addaudithook(counted)
    try:
        value = call(*arguments)
    except BaseException:
        traceback.print_exc()
        _end(1)
    if counted:
        counted.is_over = True
    # without the limit that a fault may have set
    os.set_blocking(log, True)
    beside = f"{folder}/.result"
    with open(beside, "wb") as file:
        pickle.dump((value, counted.number if counted else 0), file)
    os.replace(beside, f"{folder}/result")
    _end(value if isinstance(value, int) and not isinstance(value, bool) else 0)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Events:
    """An audit hook that counts what is written below a folder, and lets a fault happen."""

    def __init__(self, fault: Fault):
        self.fault = fault
        self.number = 0
        self.is_over = False
        self._home = os.path.abspath(fault.folder)
        if fault.kind == "cut":
            # what goes beyond is an error in place of a signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, resource.RLIM_INFINITY))

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.is_over:
            return
        path = _changed_path(event, arguments)
        if path is None or not (path + os.sep).startswith(self._home + os.sep):
            return
        number, self.number = self.number, self.number + 1
        if number < self.fault.at:
            return
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if _changes_nothing(event, path):
            return
        if self.fault.kind == "full" and event not in NEED_NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.fault.kind == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def _changed_path(event: str, arguments: tuple) -> str | None:
    """The path that an audit event writes, renames, removes or makes; None: it does not."""
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR):
            return None
    elif event in CHANGES:
        path = arguments[CHANGES[event]]
    else:
        return None
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(path)
    at = arguments[-1]
    if not os.path.isabs(name) and event != "open" and isinstance(at, int) and at >= 0:
        # as shutil.rmtree removes files: by their names in a folder that is open
        name = os.path.join(_folder_of(at), name)
    return os.path.abspath(name)


def _folder_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""  # not on this system: it is not counted


def _changes_nothing(event: str, path: str) -> bool:
    """Is it an event that a system refuses for another reason, before it looks at the disk?"""
    if event == "os.mkdir":
        return os.path.exists(path)
    return event in ("os.remove", "os.rmdir") and not os.path.lexists(path)
