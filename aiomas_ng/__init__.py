"""Message layer for multi-agent systems, RPC between Python processes and distributed co-simulation.

What most programs need is here; the modules have the rest: :mod:`~aiomas_ng.agent`, :mod:`~aiomas_ng.rpc`,
:mod:`~aiomas_ng.channel`, :mod:`~aiomas_ng.codecs`, :mod:`~aiomas_ng.local_queue`, :mod:`~aiomas_ng.clocks`,
:mod:`~aiomas_ng.subproc`, :mod:`~aiomas_ng.util`, :mod:`~aiomas_ng.exceptions`.
"""

from aiomas_ng import agent, channel, clocks, codecs, exceptions, local_queue, rpc, subproc, util
from aiomas_ng.agent import Agent, Container, SSLCerts
from aiomas_ng.channel import Limits
from aiomas_ng.clocks import AsyncioClock, ExternalClock
from aiomas_ng.codecs import JSON, MsgPack, MsgPackBlosc, serializable
from aiomas_ng.exceptions import AiomasError, RemoteException, SerializationError
from aiomas_ng.local_queue import get_queue
from aiomas_ng.rpc import expose
from aiomas_ng.util import create_task, make_ssl_client_context, make_ssl_server_context, run

__all__ = [
    "JSON",
    "Agent",
    "AiomasError",
    "AsyncioClock",
    "Container",
    "ExternalClock",
    "Limits",
    "MsgPack",
    "MsgPackBlosc",
    "RemoteException",
    "SSLCerts",
    "SerializationError",
    "agent",
    "channel",
    "clocks",
    "codecs",
    "create_task",
    "exceptions",
    "expose",
    "get_queue",
    "local_queue",
    "make_ssl_client_context",
    "make_ssl_server_context",
    "rpc",
    "run",
    "serializable",
    "subproc",
    "util",
]

__version__ = "0.1.0"
