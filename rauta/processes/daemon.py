"""`rauta run`: a router as a process (rauta.processes.service says what that means for packets).

It keeps maps as the configuration file says (SIGHUP, or a file that changes), checks backends, follows their MAC
addresses, rotates keys, asks about lost flows, and answers rautactl and Prometheus.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rauta import failing, loading
from rauta.agent import Agent
from rauta.asking.recovery import Recovery
from rauta.bpf import XdpMode
from rauta.checks.health import Checker, Transition
from rauta.config import Config, load_config
from rauta.errors import RautaError
from rauta.events import EventReader
from rauta.ids import backend_name
from rauta.network import offloads
from rauta.observation import EventRates, Observation
from rauta.processes import control, takedown
from rauta.processes.answers import Answers
from rauta.processes.instance import State
from rauta.processes.service import Service
from rauta.processes.telling import Told
from rauta.router import Router
from rauta.secrets import Rotation, Schedule, create, load_schedule
from rauta.standing import Standing

__all__ = ["Daemon", "Options"]

logger = logging.getLogger(__name__)

_HOPS_SECONDS = 5.0  # between two looks at the neighbour table
_RETIRE_SECONDS = 15.0  # between two looks for numbers that nothing mentions any more
_ROTATE_SECONDS = 24 * 3600.0  # of secrets of its own


@dataclass(frozen=True)
class Options:
    """What the command line says besides the file."""

    file: Path
    instance: str
    interfaces: tuple[str, ...] = ()
    mode: str = ""


def _observation(config: Config) -> Observation:
    """What the packet path tells, by what the configuration wants to know."""
    one_in = 0 if config.traces is None else config.traces.one_in
    return Observation(events=EventRates(), labels=config.metrics is not None, traces_one_in=one_in)


def _still_unhealthy(state: State, config: Config) -> dict[str, bool]:
    """The backends that an earlier process has left unhealthy, and whether their hosts answered.

    A restart heals nobody. Only those that are checked, which find out when that changes.
    """
    checked = {one.name: one for cluster in config.clusters if cluster.health for one in cluster.backends}
    known = ((one.name, state.unhealthy.get(backend_name(one))) for one in checked.values())
    return {name: answers for name, answers in known if answers is not None}


def _standing(state: State, unhealthy: Mapping[str, bool]) -> Standing:
    down = frozenset(name for name, host_answers in unhealthy.items() if not host_answers)
    return Standing(drained=state.drained, unhealthy=frozenset(unhealthy), down=down)


class Daemon(Service):
    """A router that runs. `router` is its packet path, `modes` are those of its interfaces by name."""

    needs = (*Service.needs, "CAP_NET_RAW")

    def __init__(self, options: Options) -> None:
        """RautaError if the name of the instance is none."""
        super().__init__(options.file, options.instance)
        self.options = options
        self.router: Router
        self.health: Checker
        self.recovery: Recovery | None = None
        self.told: Told
        self.modes: Mapping[str, str] = {}

    # ---- its life ----------------------------------------------------------------------------------------

    def start(self, stack: AsyncExitStack) -> None:
        """RautaError or a subclass says what stands in the way."""
        config = self._load()
        schedule = self.schedule(config)
        before = self.state
        unhealthy = _still_unhealthy(before, config)
        attached = takedown.attached_ids({*before.interfaces, *config.interfaces})
        with self.instance.pinned("router", attached) as maps, self.instance.pinned("fallback", attached) as agent_maps:
            self.router = Router.load(
                config,
                schedule.keys_at(time.time()),
                observation=_observation(config),
                standing=_standing(before, unhealthy),
                ids=before.ids,
                earlier=maps,
            )
            stack.callback(self.router.leave)
            self.save(ids=self.router.ids, interfaces=tuple({*before.interfaces, *config.interfaces}))
            with ExitStack() as places:
                places.enter_context(self.instance.staged("router", self.router.object, attached))
                self._attach(config, agent_maps, partial(self._stage_agent, places, attached))
                self._leave(before, set(before.interfaces) - set(config.interfaces))
        self.save(interfaces=config.interfaces)
        self.rotation = Rotation(schedule, (self.router,))
        self.health = Checker(config.clusters, self._changed, unhealthy=unhealthy)
        self.told = Told(stack.enter_context(EventReader(self.router)))
        if config.recovery is not None:
            self.recovery = stack.enter_context(Recovery(self.router))

    def _attach(self, config: Config, agent_maps: Mapping[str, Any], prepared: Callable[[Agent], None]) -> None:
        """What is changed on the interfaces is written down before: this process may be killed in between."""
        gro_off = self.state.gro_off
        with_gro = {name for name in config.interfaces if loading.interface_index(name) and offloads.has_gro(name)}
        self.save(gro_off=gro_off | with_gro)
        attachments = self.router.attach(
            *config.interfaces,
            mode=config.mode,
            strict=False,
            replace=True,
            earlier=agent_maps,
            made_clsact=self.state.made_clsact,
            prepared=prepared,
        )
        self.modes = {name: one.mode for name, one in zip(config.interfaces, attachments, strict=True)}
        self.save(gro_off=gro_off | {name for name in with_gro if self.modes[name] == "generic"})

    def _stage_agent(self, places: ExitStack, attached: Container[int], agent: Agent) -> None:
        """The fallback's agent is about to be attached."""
        places.enter_context(self.instance.staged("fallback", agent.object, attached))
        self.save(made_clsact=takedown.makes_clsact(self.state, self.router.config.interfaces))

    def _leave(self, before: State, interfaces: Collection[str]) -> None:
        """Interfaces that an earlier process has had and this one has not."""
        if interfaces:
            detached = takedown.take_off(self.instance, before, interfaces)
            takedown.restore_gro(before.gro_off & set(interfaces))
            self.save(gro_off=self.state.gro_off - set(interfaces))
            logger.info("interfaces are given up", extra={"interfaces": sorted(interfaces), "detached": len(detached)})

    async def serve(self, stack: AsyncExitStack) -> None:
        """For rautactl, Prometheus and a collector of traces."""
        self.trace(self.router, self.router.config, "rauta-router", stack)
        server = await control.serve(self.instance.control, Answers(self).handlers())
        stack.push_async_callback(server.close)
        metrics = self.router.config.metrics
        if metrics is not None:
            from rauta.prometheus.metrics import serve_router

            stack.push_async_callback(await serve_router(self, *metrics.listen))

    def jobs(self) -> Iterable[Callable[[], Awaitable[None]]]:
        """Until it ends."""
        return (
            self.health.run,
            partial(self.every, _HOPS_SECONDS, self._follow_hops),
            partial(self.every, _RETIRE_SECONDS, self._retire),
        )

    def about(self) -> dict[str, Any]:
        """In a few figures."""
        config = self.router.config
        return {
            "instance": self.instance.name,
            "interfaces": dict(self.modes),
            "generation": self.state.generation,
            "vips": len(config.vips),
            "routes": sum(len(vip.routes) for vip in config.vips),
            "backends": len(config.backends()),
        }

    # ---- configuration -----------------------------------------------------------------------------------

    def _load(self) -> Config:
        """The file, with what the command line and the environment say instead."""
        config = load_config(self.file)
        interfaces = self.options.interfaces or config.interfaces
        if not interfaces:
            advice = "Name one: `interfaces: [eth0]` there, --interface eth0, or RAUTA_INTERFACE=eth0."
            raise RautaError(f"starting with {self.file}", "it names no interface", advice)
        if self.options.mode not in ("", *get_args(XdpMode)):
            known = ", ".join(get_args(XdpMode))
            raise RautaError(f"starting in mode {self.options.mode!r}", "there is no such mode", f"There are: {known}.")
        return config.model_copy(update={"interfaces": interfaces, "mode": self.options.mode or config.mode})

    def schedule(self, config: Config) -> Schedule:
        """The keys of the installation or, without any, such as only this host knows."""
        if config.secrets is not None:
            return super().schedule(config)
        if not self.instance.secrets.exists():
            create(self.instance.secrets)
        return load_schedule(self.instance.secrets, _ROTATE_SECONDS)

    def reconfigure(self) -> None:
        """Goes on with what the file says now. RautaError: then nothing has changed."""
        config = self._load()
        schedule = self.schedule(config)
        plan = self.router.plan(config)
        self.save(ids=plan.after.ids)
        self.router.apply(plan)
        self.rotation.schedule = schedule
        if self.recovery is not None:
            self.recovery.reconfigure()

    def reconfigured(self) -> None:
        """Checks go on with whom there is now."""
        self.health.reconfigure(self.router.config.clusters)

    # ---- backends ----------------------------------------------------------------------------------------

    def _changed(self, transition: Transition) -> None:
        """A backend's health: its weight goes, or comes back."""
        extra = {"backend": transition.backend, "healthy": transition.healthy, "reason": transition.reason}
        logger.warning("backend's health has changed", extra=extra)
        self.background(self._follow_health())

    async def _follow_health(self) -> None:
        before = self.router.standing.down_in(self.router.config)
        await self.in_thread(self._stand)
        for name in self.router.standing.down_in(self.router.config) - before:
            await self._see_off(name)

    def _stand(self) -> None:
        states = self.health.states()
        names = {name: backend_name(backend) for name, backend in self.router.config.backends().items()}
        unhealthy = {names[name]: one.host_answers for name, one in states.items() if name in names and not one.healthy}
        self.save(unhealthy=unhealthy)
        self.router.stand(Standing.of_checks(states, self.router.standing.drained))

    async def _see_off(self, backend: str) -> None:
        """Whoever waits for a host that is down is told at once; after a while, whoever may be waiting."""
        clients = await self.in_thread(lambda: self.router.probe_down(backend))
        logger.warning("backend's host is down; its clients are probed", extra={"backend": backend, "clients": clients})
        loop = asyncio.get_running_loop()
        loop.call_later(failing.GIVE_UP_SECONDS, lambda: self.background(self._give_up(backend)))

    async def _give_up(self, backend: str) -> None:
        if backend in self.router.standing.down_in(self.router.config):
            await self.in_thread(lambda: self.router.give_up(backend))

    async def set_drained(self, backend: str, *, drained: bool) -> None:
        """An operator wants it empty, or full again. RautaError if there is no such backend."""
        self.router.ids.backend(self.router.config, backend)
        await self.in_thread(lambda: self._drain(backend, drained))
        logger.info("backend is drained" if drained else "backend is no longer drained", extra={"backend": backend})

    def _drain(self, backend: str, drained: bool) -> None:
        now = self.router.standing.drained
        wanted = now | {backend} if drained else now - {backend}
        self.save(drained=wanted)
        self.router.stand(replace(self.router.standing, drained=wanted))

    async def _follow_hops(self) -> None:
        for name in await self.in_thread(self.router.refresh_hops):
            logger.info("backend is reached in another way", extra={"backend": name})

    async def _retire(self) -> None:
        await self.in_thread(self._retire_now)

    def _retire_now(self) -> None:
        """Written down before anything else changes numbers."""
        gone = self.router.retire()
        if gone.backends or gone.clusters or gone.routes or gone.vips:
            self.save(ids=self.router.ids)
