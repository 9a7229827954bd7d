"""A mosaik scenario: sources, and a controller that reads them and sets their limits.

Run with the simulators' configuration as JSON; prints as JSON what the simulators saw. The log of mosaik goes
to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys

import mosaik
from loguru import logger


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sim_config", type=json.loads)
    parser.add_argument("--until", type=int, default=4)
    parser.add_argument("--source-params", type=json.loads, default={})
    parser.add_argument("--controller-params", type=json.loads, default={})
    args = parser.parse_args()

    logger.remove()
    logger.add(sys.stderr, format="{level} {message}", level="INFO")
    with mosaik.World(args.sim_config, time_resolution=60.0, skip_greetings=True) as world:
        source_sim = world.start("Source", **args.source_params)
        controller_sim = world.start("Controller", **args.controller_params)
        sources = source_sim.Source.create(2, start=10)
        controller = controller_sim.Controller()
        for source in sources:
            world.connect(source, controller, "p", async_requests=True)
        world.run(until=args.until, print_progress=False)
        results = {
            "source": source_sim.get_history("a", option=[1, {"b": None}]),
            "controller": controller_sim.get_history(),
            "ids": [source.full_id for source in sources] + [controller.full_id],
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
