"""What knows no I/O: bytes, values and ids go in, events and answers come out.

Nothing in here imports asyncio, opens a socket or reads a clock, and nothing in here is anybody's API; the
public modules re-export what people may use.
"""
