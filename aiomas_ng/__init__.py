"""Message layer for multi-agent systems, RPC between Python processes and distributed co-simulation.

What most programs need is here; the modules have the rest: :mod:`~aiomas_ng.agent`, :mod:`~aiomas_ng.rpc`,
:mod:`~aiomas_ng.channel`, :mod:`~aiomas_ng.codecs`, :mod:`~aiomas_ng.local_queue`, :mod:`~aiomas_ng.clocks`,
:mod:`~aiomas_ng.subproc`, :mod:`~aiomas_ng.util`, :mod:`~aiomas_ng.exceptions`; for resources
:mod:`~aiomas_ng.protocol`, :mod:`~aiomas_ng.resource`, :mod:`~aiomas_ng.message`, :mod:`~aiomas_ng.content`,
:mod:`~aiomas_ng.error`, :mod:`~aiomas_ng.linkformat`, :mod:`~aiomas_ng.cache`, :mod:`~aiomas_ng.forwarding`,
:mod:`~aiomas_ng.directory`, :mod:`~aiomas_ng.pipe`, :mod:`~aiomas_ng.tokenmanager`; against what goes
wrong :mod:`~aiomas_ng.deadlines`, :mod:`~aiomas_ng.liveness`, :mod:`~aiomas_ng.supervision`,
:mod:`~aiomas_ng.access`, :mod:`~aiomas_ng.faults`.
"""

from aiomas_ng import (
    access,
    agent,
    cache,
    channel,
    clocks,
    codecs,
    content,
    deadlines,
    directory,
    error,
    exceptions,
    faults,
    forwarding,
    linkformat,
    liveness,
    local_queue,
    message,
    pipe,
    protocol,
    resource,
    rpc,
    subproc,
    supervision,
    tokenmanager,
    util,
)
from aiomas_ng.agent import Agent, Container, SSLCerts, state
from aiomas_ng.cache import Cache
from aiomas_ng.channel import Limits
from aiomas_ng.clocks import AsyncioClock, ExternalClock
from aiomas_ng.codecs import JSON, MsgPack, MsgPackBlosc, serializable
from aiomas_ng.exceptions import AiomasError, RemoteException, SerializationError
from aiomas_ng.liveness import ConnectionState, Liveness
from aiomas_ng.local_queue import get_queue
from aiomas_ng.message import ContentFormat, Message
from aiomas_ng.protocol import Context
from aiomas_ng.rpc import expose
from aiomas_ng.supervision import background
from aiomas_ng.util import create_task, make_ssl_client_context, make_ssl_server_context, run

__all__ = [
    "JSON",
    "Agent",
    "AiomasError",
    "AsyncioClock",
    "Cache",
    "ConnectionState",
    "Container",
    "ContentFormat",
    "Context",
    "ExternalClock",
    "Limits",
    "Liveness",
    "Message",
    "MsgPack",
    "MsgPackBlosc",
    "RemoteException",
    "SSLCerts",
    "SerializationError",
    "access",
    "agent",
    "background",
    "cache",
    "channel",
    "clocks",
    "codecs",
    "content",
    "create_task",
    "deadlines",
    "directory",
    "error",
    "exceptions",
    "expose",
    "faults",
    "forwarding",
    "get_queue",
    "linkformat",
    "liveness",
    "local_queue",
    "make_ssl_client_context",
    "make_ssl_server_context",
    "message",
    "pipe",
    "protocol",
    "resource",
    "rpc",
    "run",
    "serializable",
    "state",
    "subproc",
    "supervision",
    "tokenmanager",
    "util",
]

__version__ = "0.1.0"
