"""Supervision: the background tasks of agents are owned, and a policy says what follows when one fails.

::

    class Meter(Agent):
        on_failure = RestartTask(max_restarts=3, within=60)

        @background
        async def poll(self):
            while True:
                self.power = await self.device.read()
                await self.container.clock.sleep(1)

The policies:

- :class:`Log`: the error is logged, and the task has ended. This is the default.
- :class:`RestartTask`: the function is called again, with the same arguments, after a pause. When the
  restarts are used up its ``then`` applies, by default :class:`RestartAgent`.
- :class:`RestartAgent`: the agent is stopped, and made anew with the same id, after a pause. When the
  restarts are used up its ``then`` applies, by default :class:`StopContainer`.
- :class:`StopContainer`: the container is shut down.

Rules:

- One task failing harms no other one (one for one, as this is called elsewhere), unless the policy says so.
- Raising is a failure. So is being cancelled by anybody but the agent or :meth:`BackgroundTask.cancel`.
  Returning is none, except with ``RestartTask(always=True)``. ``SystemExit`` and ``KeyboardInterrupt`` end
  the event loop, as ever.
- Tasks are cancelled, and waited for, before the agent's ``on_stop`` runs: it has the last word.
- Pauses follow the container's clock: in a simulation they are simulated time, and the same in each run.
- Each failure is logged once, with its traceback, and what is done next.

An agent that is restarted is gone at once: its tasks, its running calls and the requests to its resources are
cancelled (:exc:`~aiomas_ng.exceptions.RemoteCancelledError`, 5.03), its ``on_stop`` is run. After the pause
its class is called with the same arguments, the same objects; the new agent has the same id, so proxies and
URLs lead to it. Who observes one of its declared states stays registered and gets the new state. Calls that
come meanwhile fail at once, :exc:`~aiomas_ng.exceptions.RemoteRestartingError`, and were not executed;
requests get 5.03. If the constructor fails, that counts as a further failure of the agent.
"""

from __future__ import annotations

from aiomas_ng._core.restarts import Failure, Log, Policy, Restart, RestartAgent, RestartTask, StopContainer
from aiomas_ng._io.background import AgentTasks, BackgroundTask, TaskState
from aiomas_ng._io.supervised import background
from aiomas_ng._io.supervisor import Supervisor

__all__ = [
    "AgentTasks",
    "BackgroundTask",
    "Failure",
    "Log",
    "Policy",
    "Restart",
    "RestartAgent",
    "RestartTask",
    "StopContainer",
    "Supervisor",
    "TaskState",
    "background",
]
