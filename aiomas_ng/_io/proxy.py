"""What stands for a remote service or function, and the way there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from aiomas_ng._io.reply import Reply

if TYPE_CHECKING:
    from aiomas_ng.channel import Channel

__all__ = ["CallOptions", "Link", "Proxy", "with_options"]


#: Attributes that a proxy keeps, so that one whose attributes are agents does not keep all of them.
MAX_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How calls through a proxy are made; see :func:`with_options`."""

    timeout: float | None = None
    oneway: bool = False


class Link(Protocol):
    """The way from a proxy to its service: a connection, or a peer that is connected to when needed."""

    @property
    def url(self) -> str | None: ...

    @property
    def channel(self) -> Channel | None: ...

    def call(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions | None
    ) -> Reply | None: ...


class Proxy:
    """Stands for a remote service or function.

    Attributes are proxies of sub-services and functions; calling one calls the function and returns a
    :class:`~aiomas_ng.channel.Reply`, a future. Proxies are equal if they lead to the same place.

    Args:
        link: The way to the service.
        path: The path of the service there.
        url: Base URL of the container that the service lives in, if it has one.
        options: How calls are made.
        name: How the proxy shows itself, if not by peer and path.
    """

    __module__ = "aiomas_ng.rpc"  # where people know it from
    __slots__ = ("__dict__", "__weakref__", "_link", "_name", "_options", "_path", "_url")

    def __init__(
        self,
        link: Link,
        path: str,
        url: str | None = None,
        options: CallOptions | None = None,
        name: str | None = None,
    ) -> None:
        self._link = link
        self._path = path
        self._url = url
        self._options = options
        self._name = name

    @property
    def _channel(self) -> Channel | None:
        return self._link.channel

    def __getattr__(self, name: str) -> Proxy:
        if name.startswith("__") and name.endswith("__"):
            # Protocols of Python (copy, pickle, numpy, …) look for these, and must not find a remote
            # function.
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        path = f"{self._path}/{name}" if self._path else name
        child = Proxy(self._link, path, self._url, self._options)
        if len(self.__dict__) < MAX_KEPT:
            self.__dict__[name] = child  # found there without us the next time, at a tenth of the cost
        return child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._path:
            raise AttributeError("this proxy names no function: call one of its attributes")
        return self._link.call(self._path, args, kwargs, self._options)

    def _key(self) -> tuple[Any, str]:
        url = self._url or self._link.url
        return (url or id(self._link), self._path)

    def __copy__(self) -> Proxy:
        return self

    def __deepcopy__(self, memo: Any) -> Proxy:
        return self  # it is a name, and cannot be changed

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{self} cannot be pickled: send it through a connection, or send its address")

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Proxy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        if self._name:
            return self._name
        channel = self._link.channel
        origin = channel.get_extra_info("peername") if channel is not None else self._link.url
        return f"Proxy({origin[:2] if isinstance(origin, tuple) else origin!r}, {self._path!r})"

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{self} at {id(self):#x}>"


def with_options(proxy: Proxy, *, timeout: float | None = None, oneway: bool = False) -> Proxy:
    """Return a proxy for the same place whose calls, and those of its attributes, are made with these
    options.

    ::

        reply = await with_options(agent.plan, timeout=5)(day)
        with_options(logger.info, oneway=True)("done")

    Args:
        proxy: The proxy.
        timeout: Seconds to wait for a reply; then the call fails with
            :exc:`~aiomas_ng.exceptions.CallTimeoutError` and is cancelled at the peer.
        oneway: The calls are not answered, and return ``None``; errors are logged by the peer.

    Raises:
        ValueError: A timeout that is not > 0, or one for one-way calls, which do not wait.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be > 0 seconds but is {timeout!r}")
    if timeout is not None and oneway:
        raise ValueError("a one-way call is not answered, so it can have no timeout")
    return Proxy(proxy._link, proxy._path, proxy._url, CallOptions(timeout, oneway), proxy._name)
