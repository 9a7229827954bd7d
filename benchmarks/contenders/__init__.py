"""The contenders: what they are called, where they are, what they need."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import Final, Literal, cast

from benchmarks.contender import Contender

__all__ = ["CONTENDERS", "Entry", "find"]


@dataclass(frozen=True)
class Entry:
    """A column of the table."""

    name: str
    title: str
    #: The module in this package, or with a dot a module anywhere; several contenders may share one.
    module: str
    #: The distributions whose versions matter.
    distributions: tuple[str, ...] = ()
    #: Modules that must be there.
    needs: tuple[str, ...] = ()
    loop: Literal["asyncio", "uvloop", "busy"] = "asyncio"
    #: What the module may look at to do things in another way.
    variant: str = ""

    def missing(self) -> str | None:
        """Return what is missing to run it, or ``None``."""
        for module in self.needs:
            if not is_there(module):
                return f"{module} is not installed"
        return None

    def versions(self) -> str:
        """Return names and versions of the distributions."""
        return ", ".join(f"{name} {version(name)}" for name in self.distributions)

    def load(self) -> Contender:
        """Import the module."""
        name = self.module if "." in self.module else f"{__name__}.{self.module}"
        return cast(Contender, importlib.import_module(name))


def is_there(module: str) -> bool:
    """Return whether a module can be found; of its parents, only those are imported that there are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def version(distribution: str) -> str:
    """Return the version; that of ours also where it is not installed, but only found."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(distribution), "__version__", "?"))


def find(name: str) -> Entry:
    """Return a contender; a name with a dot is that of a module, and of a contender of your own.

    Raises:
        KeyError: There is no such contender.
    """
    if "." in name and name not in CONTENDERS:
        return Entry(name, name, name, needs=(name,))
    return CONTENDERS[name]


_OURS: Final = ("aiomas_ng", "msgpack")

CONTENDERS: Final[dict[str, Entry]] = {
    entry.name: entry
    for entry in (
        Entry("ours", "aiomas_ng", "ours", _OURS),
        Entry("ours-uvloop", "aiomas_ng, uvloop", "ours", (*_OURS, "uvloop"), ("uvloop",), "uvloop"),
        Entry("ours-busy", "aiomas_ng, busy-polling", "ours", _OURS, ("aiomas_ng.tuning",), "busy"),
        Entry("floor", "floor", "floor", ("msgpack",)),
        Entry("floor-coalescing", "floor, coalescing", "floor", ("msgpack",), variant="coalescing"),
        Entry("managers", "multiprocessing.managers", "managers"),
        Entry("thriftpy2", "thriftpy2", "thrift", ("thriftpy2",), ("thriftpy2",)),
        Entry("pyro5", "Pyro5", "pyro", ("Pyro5",), ("Pyro5",)),
        Entry(
            "aio-msgpack-rpc", "aio-msgpack-rpc", "msgpack_rpc", ("aio-msgpack-rpc",), ("aio_msgpack_rpc",)
        ),
        Entry("aiomas", "aiomas", "aiomas_agents", ("aiomas", "msgpack"), ("aiomas", "msgpack")),
        Entry("xoscar", "xoscar", "xoscar_actors", ("xoscar",), ("xoscar",)),
        Entry("mango", "mango-agents", "mango_agents", ("mango-agents",), ("mango",)),
        Entry("mosaik", "mosaik-api-v3", "mosaik", ("mosaik-api-v3",), ("mosaik_api_v3",)),
        Entry("pyzmq", "pyzmq, MsgPack", "zeromq", ("pyzmq", "msgpack"), ("zmq", "msgpack")),
        Entry("grpc", "grpcio", "grpc_aio", ("grpcio", "protobuf"), ("grpc", "grpc_tools")),
        Entry("pycapnp", "pycapnp", "capnproto", ("pycapnp",), ("capnp",)),
    )
}
