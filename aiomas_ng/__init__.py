"""Message layer for multi-agent systems, RPC between Python processes and distributed co-simulation."""

__version__ = "0.1.0"
