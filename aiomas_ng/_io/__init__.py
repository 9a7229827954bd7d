"""The asyncio parts of the channel that are nobody's API: replies, jobs, dialling and listening."""
