"""`rauta run`: a router as a process that an operator starts, reloads, asks, kills and starts again.

Packets do not need it: the programs stay attached, their maps pinned, when it ends. The next process loads the programs
anew, has them go on with the flow table and the counters, and puts them in the old ones' place in one step on each
interface; so a restart and an upgrade are the same thing, and both may come with another configuration.

What the process does meanwhile: it keeps maps as the configuration file says (SIGHUP, or a file that changes), checks
backends, follows their MAC addresses, rotates keys, asks about lost flows, and answers rautactl and Prometheus. All of
it happens in one event loop; what takes the kernel more than a moment, in a thread, one such thing at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rauta import control, failing
from rauta.answers import Answers
from rauta.config import Config, load_config
from rauta.errors import RautaError
from rauta.events import EventReader
from rauta.health import Checker, Transition
from rauta.instance import Instance, State
from rauta.observation import EventRates, Observation
from rauta.recovery import Recovery
from rauta.router import Plan, Router
from rauta.secrets import Rotation, create, load_schedule
from rauta.standing import Standing
from rauta.telling import Told

__all__ = ["Daemon", "Options"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LOOK_SECONDS = 1.0  # between two looks at the configuration file
_HOPS_SECONDS = 5.0  # between two looks at the neighbour table
_RETIRE_SECONDS = 15.0  # between two looks for numbers that nothing mentions any more
_KEYS_SECONDS = 5.0  # at most, between two looks at the clock: it may be set
_ROTATE_SECONDS = 24 * 3600.0  # of secrets of its own


@dataclass(frozen=True)
class Options:
    """What the command line says besides the file."""

    file: Path
    instance: str
    interfaces: tuple[str, ...] = ()
    mode: str = ""


class Daemon:
    """A router that runs. `router` is its packet path; `generation` counts the configurations it has had."""

    def __init__(self, options: Options) -> None:
        """RautaError if the name of the instance is none."""
        self.options = options
        self.instance = Instance(options.instance)
        self.started = time.time()
        self.reloads = {"ok": 0, "failed": 0}
        self.error = ""
        self.router: Router
        self.health: Checker
        self.recovery: Recovery | None = None
        self.told: Told
        self.modes: Mapping[str, str] = {}
        self._rotation: Rotation
        self._state = State()
        self._busy = asyncio.Lock()
        self._seen: object = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    # ---- its life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. RautaError if it cannot start; packets then go on as before."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self.instance.locked())
            self._seen = _version(self.options.file)
            self._start(stack)
            await self._serve(stack)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            loop.add_signal_handler(signal.SIGHUP, self._reload.set)
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self.health.run()),
                    *(tasks.create_task(self._every(seconds, job)) for seconds, job in self._jobs().items()),
                    tasks.create_task(self._reloads()),
                    tasks.create_task(self._rotate()),
                ]
                logger.info("router runs", extra=self._about())
                _tell_systemd("READY=1")
                await self._stop.wait()
                for task in running:
                    task.cancel()
        logger.info("router process ends, packets go on")

    def _start(self, stack: AsyncExitStack) -> None:
        """The packet path: a new one, or in the place of the one that an earlier process has left."""
        config = self._load()
        state = self.instance.state()
        self._rotation = Rotation(self._schedule(config), ())
        keys = self._rotation.schedule.keys_at(time.time())
        observation = Observation(events=EventRates())
        with self.instance.pinned("router") as maps, self.instance.pinned("fallback") as agent_maps:
            standing = Standing(drained=state.drained)
            router = Router.load(config, keys, observation=observation, standing=standing, ids=state.ids, earlier=maps)
            stack.callback(router.leave)
            self.router = router
            self._save(replace(state, ids=router.ids, interfaces=config.interfaces))
            attachments = router.attach(
                *config.interfaces,
                mode=config.mode,
                strict=False,
                replace=True,
                earlier=agent_maps,
                made_clsact=state.made_clsact,
            )
            self.modes = {
                name: attachment.mode for name, attachment in zip(config.interfaces, attachments, strict=True)
            }
        self.instance.pin("router", router.object)
        if router.fallback_agent is not None:
            self.instance.pin("fallback", router.fallback_agent.object)
        self._rotation = Rotation(self._rotation.schedule, (router,))
        self.health = Checker(config.clusters, self._changed)
        self.told = Told(stack.enter_context(EventReader(router)))
        if config.recovery is not None:
            self.recovery = stack.enter_context(Recovery(router))

    async def _serve(self, stack: AsyncExitStack) -> None:
        server = await control.serve(self.instance.control, Answers(self).handlers())
        stack.callback(server.close)
        listen = self.router.config.metrics
        if listen is not None:
            from rauta import metrics

            stack.push_async_callback(await metrics.serve(self, *listen.listen))

    def _jobs(self) -> Mapping[float, Callable[[], Awaitable[None]]]:
        return {_LOOK_SECONDS: self._look, _HOPS_SECONDS: self._follow_hops, _RETIRE_SECONDS: self._retire}

    async def _every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await job()
            except RautaError as error:
                logger.warning("%s", error)

    async def in_thread(self, what: Callable[[], Result]) -> Result:
        """What changes the router, or takes long: in a thread, when nothing else does."""
        async with self._busy:
            return await asyncio.to_thread(what)

    # ---- configuration ---------------------------------------------------------------------------------

    def _load(self) -> Config:
        """The file, with what the command line and the environment say in addition."""
        config = load_config(self.options.file)
        interfaces = self.options.interfaces or config.interfaces
        if not interfaces:
            advice = "Name one: `interfaces: [eth0]` there, --interface eth0, or RAUTA_INTERFACE=eth0."
            raise RautaError(f"starting with {self.options.file}", "it names no interface", advice)
        mode = self.options.mode or config.mode
        return config.model_copy(update={"interfaces": interfaces, "mode": mode})

    def _schedule(self, config: Config) -> Any:
        """The keys of the installation or, without any, such as only this router knows."""
        if config.secrets is not None:
            return load_schedule(config.secrets.file, config.secrets.rotate)
        if not self.instance.secrets.exists():
            create(self.instance.secrets)
        return load_schedule(self.instance.secrets, _ROTATE_SECONDS)

    async def reload(self) -> int:
        """Goes on with what the file says now; returns the new generation. RautaError: then nothing has changed."""
        self._seen = _version(self.options.file)
        try:
            await self.in_thread(self._reconfigure)
        except RautaError as error:
            self.reloads["failed"] += 1
            self.error = str(error)
            logger.error("configuration not loaded, the old one stays: %s", error)
            raise
        self.reloads["ok"] += 1
        self.error = ""
        self.health.reconfigure(self.router.config.clusters)
        logger.info("configuration loaded", extra=self._about())
        return self._state.generation

    def _reconfigure(self) -> None:
        config = self._load()
        schedule = self._schedule(config)
        plan: Plan = self.router.plan(config)
        self._save(replace(self._state, ids=plan.after.ids))
        self.router.apply(plan)
        self._rotation.schedule = schedule
        self._save(replace(self._state, generation=self._state.generation + 1))
        if self.recovery is not None:
            self.recovery.reconfigure()

    async def _look(self) -> None:
        """Files are replaced, or written in several steps: a change counts once it has lasted for a look."""
        now = _version(self.options.file)
        if now is not None and now != self._seen and now == self._pending:
            self._reload.set()
        self._pending = now

    _pending: object = None

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            with contextlib.suppress(RautaError):
                await self.reload()

    # ---- backends --------------------------------------------------------------------------------------

    def _changed(self, transition: Transition) -> None:
        """A backend's health: its weight goes, or comes back."""
        asyncio.get_running_loop().create_task(self._follow_health(transition.backend))

    async def _follow_health(self, backend: str) -> None:
        before = self.router.standing.down_in(self.router.config)
        await self.in_thread(self._stand)
        down = self.router.standing.down_in(self.router.config)
        for name in down - before:
            await self._see_off(name)
        del backend

    def _stand(self) -> None:
        states = self.health.states()
        self.router.stand(
            replace(
                self.router.standing,
                unhealthy=frozenset(name for name, state in states.items() if not state.healthy),
                down=frozenset(name for name, state in states.items() if not state.healthy and not state.host_answers),
            )
        )

    async def _see_off(self, backend: str) -> None:
        """Whoever waits for a host that is down is told at once; after a while, whoever may be waiting."""
        clients = await self.in_thread(lambda: self.router.probe_down(backend))
        logger.warning(
            "host of backend is down, its clients are probed", extra={"backend": backend, "clients": clients}
        )
        asyncio.get_running_loop().call_later(
            failing.GIVE_UP_SECONDS, lambda: asyncio.ensure_future(self._give_up(backend))
        )

    async def _give_up(self, backend: str) -> None:
        if backend in self.router.standing.down_in(self.router.config):
            await self.in_thread(lambda: self.router.give_up(backend))

    async def set_drained(self, backend: str, *, drained: bool) -> None:
        """An operator wants it empty, or full again. RautaError if there is no such backend."""
        self.router.ids.backend(self.router.config, backend)
        now = self.router.standing.drained
        wanted = now | {backend} if drained else now - {backend}
        self._save(replace(self._state, drained=wanted))
        await self.in_thread(lambda: self.router.stand(replace(self.router.standing, drained=wanted)))
        logger.info("backend is drained" if drained else "backend is no longer drained", extra={"backend": backend})

    async def _follow_hops(self) -> None:
        for name in await self.in_thread(self.router.refresh_hops):
            logger.info("backend is reached in another way", extra={"backend": name})

    async def _retire(self) -> None:
        gone = await self.in_thread(self.router.retire)
        if gone.backends or gone.clusters or gone.routes or gone.vips:
            self._save(replace(self._state, ids=self.router.ids))

    # ---- keys ------------------------------------------------------------------------------------------

    async def _rotate(self) -> None:
        while True:
            try:
                left = self._rotation.step()
            except RautaError as error:
                logger.error("keys are not rotated: %s", error)
                left = _LOOK_SECONDS
            await asyncio.sleep(min(left, _KEYS_SECONDS))

    # ---- what others see -------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Goes up with each configuration."""
        return self._state.generation

    def _save(self, state: State) -> None:
        self.instance.save(state)
        self._state = state

    def _about(self) -> dict[str, Any]:
        config = self.router.config
        return {
            "instance": self.instance.name,
            "interfaces": list(config.interfaces),
            "generation": self.generation,
            "vips": len(config.vips),
            "routes": sum(len(vip.routes) for vip in config.vips),
            "backends": len(config.backends()),
        }


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
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), address.replace("@", "\0", 1))
