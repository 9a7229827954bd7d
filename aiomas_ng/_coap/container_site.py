"""The site of a container: below the id of each agent lies the agent's own site.

A site of an agent is made when it is first asked for, so that agents whose resources nobody uses cost
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiomas_ng._coap.admission import is_listed
from aiomas_ng._coap.agent_states import StateResource, describe_states, get_states, make_resource
from aiomas_ng._core.access import Rule
from aiomas_ng._core.routing import Router
from aiomas_ng.content import Coder
from aiomas_ng.error import NotFound, ServiceUnavailable
from aiomas_ng.linkformat import LinkFormat
from aiomas_ng.pipe import Pipe
from aiomas_ng.resource import ObservableResource, Site, WKCResource

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent

__all__ = ["AgentSite", "ContainerSite"]

WELL_KNOWN_CORE = (".well-known", "core")


def get_access(agent: Agent) -> Rule | None:
    """Return who may reach *agent*."""
    return agent.router.access


class AgentSite(Site):
    """The resources of one agent: those declared on its class, and those that were added.

    Args:
        agent: The agent.
        coder: Encodes and decodes values.
    """

    def __init__(self, agent: Agent, coder: Coder) -> None:
        super().__init__()
        self._own_list = WKCResource(self.get_resources_as_linkheader)
        self.agent = agent
        self._coder = coder
        self._work: dict[asyncio.Task[object] | None, Pipe] = {}  # requests that are being worked on
        self._add_states()

    def _add_states(self) -> None:
        for path, declaration in get_states(type(self.agent)).items():
            if path not in self._resources:
                self.add_resource(path, make_resource(declaration, self.agent, self._coder))

    @property
    def access(self) -> Rule | None:
        """Who may reach it: who may reach the agent."""
        return get_access(self.agent)

    def find(self, path: tuple[str, ...]) -> tuple[Any, int]:
        """Return what answers for *path*; every agent also has a list of its resources."""
        if path == WELL_KNOWN_CORE and path not in self._resources:
            return self._own_list, len(path)
        return super().find(path)

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Let the resource that the request is for add its responses to *pipe*."""
        task = asyncio.current_task()
        self._work[task] = pipe
        try:
            await super().render_to_pipe(pipe)
        finally:
            self._work.pop(task, None)

    def suspend(self) -> None:
        """The agent is gone, but will be replaced: who observes its declared states stays registered; all
        else ends."""
        for path, resource in list(self._resources.items()):
            if not isinstance(resource, StateResource):
                self.remove_resource(path)
        for path in list(self._subsites):
            self.remove_resource(path)
        observed = {pipe for resource in self._resources.values() for pipe in resource.get_observing_pipes()}
        for task, pipe in list(self._work.items()):
            if task is not None and pipe not in observed:
                task.cancel()

    def resume(self, agent: Agent) -> None:
        """*agent* has taken the place of the one before, of the same class."""
        self.agent = agent
        for resource in self._resources.values():
            resource.serve(agent)
        self._add_states()

    def refresh(self) -> None:
        """Notify all observers: whatever they observe may have changed."""
        for resource in self._resources.values():
            if isinstance(resource, ObservableResource):
                resource.updated_state()

    def notify(self, path: tuple[str, ...]) -> None:
        """The state at *path* has changed."""
        resource = self._resources.get(path)
        if isinstance(resource, ObservableResource):
            resource.updated_state()


class ContainerSite(Site):
    """The root site of a container.

    Args:
        agents: The agents, by id.
        get_coder: Returns what encodes and decodes values.
        router: That of the container, whose rule is that of the site as well.
    """

    def __init__(self, agents: Mapping[str, Agent], get_coder: Callable[[], Coder], router: Router) -> None:
        super().__init__()
        self._router = router
        self._agents = agents
        self._get_coder = get_coder
        self._sites: dict[str, AgentSite] = {}
        self._suspended: dict[str, AgentSite | None] = {}  # those of agents that are being restarted
        self._own_list = WKCResource(self.get_resources_as_linkheader)

    @property
    def access(self) -> Rule | None:
        """Who may reach it: who may reach the container."""
        return self._router.access

    def get_agent_site(self, aid: str) -> AgentSite | None:
        """Return the site of the agent *aid*, made now if need be; ``None`` if there is no such agent."""
        site = self._sites.get(aid)
        if site is None:
            agent = self._agents.get(aid)
            if agent is None:
                return None
            site = self._sites[aid] = AgentSite(agent, self._get_coder())
        return site

    def find(self, path: tuple[str, ...]) -> tuple[Any, int]:
        """Return what answers for *path*: what was added to this site, or the site of an agent."""
        if path == WELL_KNOWN_CORE and path not in self._resources:
            return self._own_list, len(path)
        site = self.get_agent_site(path[0]) if len(path) > 1 else None
        if site is None:
            if path and path[0] in self._suspended:
                raise ServiceUnavailable("the agent is just being restarted")
            return super().find(path)
        try:
            found, depth = super().find(path)
        except NotFound:
            return site, 1
        return (found, depth) if depth > 1 else (site, 1)

    def notify(self, aid: str, agent: Agent, path: tuple[str, ...]) -> None:
        """The state of an agent has changed."""
        site = self._sites.get(aid)
        if site is not None and site.agent is agent:
            site.notify(path)

    def remove_agent(self, aid: str) -> None:
        """The agent is gone: end the observations of its resources."""
        site = self._sites.pop(aid, None) or self._suspended.pop(aid, None)
        self._suspended.pop(aid, None)
        if site is not None:
            site.close_observations()

    def put_away(self, aid: str) -> None:
        """The agent is being restarted: its observers are kept until it is back."""
        self._suspended[aid] = site = self._sites.pop(aid, None)
        if site is not None:
            site.suspend()

    def bring_back(self, aid: str, agent: Agent) -> None:
        """*agent* takes the place of one that is being restarted; it is not complete yet."""
        site = self._suspended.pop(aid, None)
        if site is not None:
            site.resume(agent)
            self._sites[aid] = site

    def refresh(self, aid: str) -> None:
        """An agent has been restarted: notify the observers that it was found with."""
        site = self._sites.get(aid)
        if site is not None:
            site.refresh()

    def get_resources_as_linkheader(self) -> LinkFormat:
        """Return links to all resources of all agents, and to what was added to this site."""
        links = list(super().get_resources_as_linkheader())
        of_class: dict[type, LinkFormat] = {}  # there may be many agents of few classes
        for aid, agent in self._agents.items():
            if not is_listed(get_access(agent)):
                continue
            site = self._sites.get(aid)
            if site is not None:
                below = site.get_resources_as_linkheader()
            else:
                cls = type(agent)
                found = of_class.get(cls)
                below = found if found is not None else of_class.setdefault(cls, describe_states(cls))
            links.extend(below.prefixed((aid,)))
        return LinkFormat(links)
