"""What `rauta run` and `rauta agent` have in common: a process that is started, reloaded, killed and started again.

Packets do not need it: programs stay attached, their maps pinned, when it ends. The next process loads the programs
anew, has them go on with what the old ones' maps hold, and puts them in their place in one step on each interface; so a
restart and an upgrade are the same thing, and both may come with another configuration.

All of it happens in one event loop; what takes the kernel more than a moment, in a thread, one such thing at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rauta.config import Config
from rauta.errors import RautaError
from rauta.processes import capabilities, footprint
from rauta.processes.instance import Instance, State
from rauta.secrets import Rotation, Schedule, load_schedule

if TYPE_CHECKING:
    from rauta.agent import Agent
    from rauta.router import Router

__all__ = ["Service"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LOOK_SECONDS = 1.0  # between two looks at the configuration file
_KEYS_SECONDS = 5.0  # at most, between two looks at the clock: it may be set


class Service(ABC):
    """A running instance. `file` is its configuration, `reloads` how often that was loaded again, by outcome.

    `error` says what is wrong with the file, if the newest version of it was not loaded. `needs`: which capabilities.
    """

    needs: ClassVar[Sequence[str]] = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN")

    def __init__(self, file: Path, instance: str) -> None:
        """RautaError if the name of the instance is none."""
        self.file = file
        self.instance = Instance(instance)
        self.started = time.time()
        self.reloads = {"ok": 0, "failed": 0}
        self.error = ""
        self.rotation: Rotation
        self.state = State()
        self._busy = asyncio.Lock()
        self._saving = threading.Lock()
        self._seen = self._pending = _version(file)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._besides: set[asyncio.Task[None]] = set()

    # ---- what each one does for itself -------------------------------------------------------------------

    @abstractmethod
    def start(self, stack: AsyncExitStack) -> None:
        """Sets the packet path up: a new one, or in the place of the one that an earlier process has left."""

    @abstractmethod
    async def serve(self, stack: AsyncExitStack) -> None:
        """Opens what others ask it by."""

    @abstractmethod
    def reconfigure(self) -> None:
        """Goes on with what the file says now, in a thread. RautaError: then nothing has changed."""

    @abstractmethod
    def jobs(self) -> Iterable[Callable[[], Awaitable[None]]]:
        """What it does all the time, besides."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the log says of it."""

    @abstractmethod
    def reconfigured(self) -> None:
        """After `reconfigure`, in the event loop."""

    # ---- its life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. RautaError if it cannot start; packets then go on as before."""
        async with AsyncExitStack() as stack:
            capabilities.require(f"starting with {self.file}", *self.needs)
            fresh = not self.instance.exists
            stack.enter_context(self.instance.locked())
            try:
                self.state = self.instance.state()
                self.start(stack)
                await self.serve(stack)
            except BaseException:
                if fresh:
                    stack.callback(self.instance.remove)
                raise
            self._listen()
            async with asyncio.TaskGroup() as tasks:
                jobs = (*self.jobs(), self._watch, self._load_when_told, self._rotate)
                running = [tasks.create_task(_awaited(job)) for job in jobs]
                footprint.give_back()
                logger.info("started", extra=self.about())
                _tell_systemd("READY=1")
                await self._stop.wait()
                _tell_systemd("STOPPING=1")
                for task in running:
                    task.cancel()
        logger.info("ended; packets go on", extra={"instance": self.instance.name})

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)

    async def in_thread(self, what: Callable[[], Result]) -> Result:
        """What changes the packet path, or takes long: in a thread, when nothing else does."""
        async with self._busy:
            return await asyncio.to_thread(what)

    def background(self, job: Coroutine[Any, Any, None]) -> None:
        """Does it besides, once; what goes wrong is logged."""
        task = asyncio.get_running_loop().create_task(job)
        self._besides.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._besides.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s", error)

    @staticmethod
    async def every(seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        """Does it again and again; what goes wrong is logged."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await job()
            except RautaError as error:
                logger.warning("%s", error)

    def save(self, **changes: Any) -> None:
        """Writes fields of the state. From any thread."""
        with self._saving:
            self.state = replace(self.state, **changes)
            self.instance.save(self.state)

    # ---- configuration -----------------------------------------------------------------------------------

    async def reload(self) -> int:
        """Goes on with what the file says now; returns the new generation. RautaError: then nothing has changed."""
        self._seen = _version(self.file)
        _tell_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            return await self._reload_now()
        finally:
            _tell_systemd("READY=1")

    async def _reload_now(self) -> int:
        try:
            await self.in_thread(self.reconfigure)
        except RautaError as error:
            self.reloads["failed"] += 1
            self.error = str(error)
            logger.error("configuration not loaded, the old one stays: %s", error)
            raise
        self.reloads["ok"] += 1
        self.error = ""
        self.save(generation=self.state.generation + 1)
        self.reconfigured()
        footprint.give_back()
        logger.info("configuration loaded", extra=self.about())
        return self.state.generation

    async def _watch(self) -> None:
        """A file may be written in several steps: a change counts once it has lasted for a look."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = _version(self.file)
            if now is not None and now != self._seen and now == self._pending:
                self._reload.set()
            self._pending = now

    async def _load_when_told(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            with contextlib.suppress(RautaError):
                await self.reload()

    # ---- traces ------------------------------------------------------------------------------------------

    def trace(self, traced: Router | Agent, config: Config, service: str, stack: AsyncExitStack) -> None:
        """Sends what the packet path tells of traced requests to the configuration's collector, if it has one."""
        if config.traces is None:
            return
        from rauta.tracing.spans import Exporter
        from rauta.tracing.traces import TraceReader

        reader = stack.enter_context(TraceReader(traced))
        exporter = stack.enter_context(Exporter(config.traces.endpoint, service=service))
        loop = asyncio.get_running_loop()
        loop.add_reader(reader.fileno(), lambda: exporter.offer(reader.poll(0)))
        stack.callback(loop.remove_reader, reader.fileno())

    # ---- keys --------------------------------------------------------------------------------------------

    def schedule(self, config: Config) -> Schedule:
        """Which keys are live when, by the configuration's file of secrets. RautaError if it names none."""
        if config.secrets is None:
            advice = "Make one, `rauta secrets new FILE`, and name it: `secrets: {file: FILE}`."
            raise RautaError(f"starting with {self.file}", "it names no `secrets`, which routers share", advice)
        return load_schedule(config.secrets.file, config.secrets.rotate)

    async def _rotate(self) -> None:
        while True:
            try:
                left = await self.in_thread(self.rotation.step)
            except RautaError as error:
                logger.error("keys are not rotated: %s", error)
                left = _LOOK_SECONDS
            await asyncio.sleep(min(left, _KEYS_SECONDS))


async def _awaited(job: Callable[[], Awaitable[None]]) -> None:
    await job()


def _version(path: Path) -> object:
    """Changes when the file does; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _tell_systemd(message: str) -> None:
    """sd_notify(3), if the service manager has asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), address.replace("@", "\0", 1))
