"""A virtual power plant: photovoltaic plants, batteries and a controller share one connection to the grid.

``python -m examples.virtual_power_plant --help`` says how to run it, ``README.md`` what it does.  The
modules, in the order in which they are best read:

* :mod:`.timeline`: the simulated hours.
* :mod:`.messages`: what agents send each other, beyond numbers.
* :mod:`.storage` and :mod:`.batteries`: the physics of a battery, and the agent around it.
* :mod:`.photovoltaics` and :mod:`.plants`: the power of a plant by weather data, and the agent around it.
* :mod:`.herald` and :mod:`.monitor`: how states of charge are registered at a directory, found and observed.
* :mod:`.market` and :mod:`.controller`: who gets how much, and the agent that sees to it.
* :mod:`.calls`: counting of calls.
* :mod:`.portfolio`, :mod:`.containers`, :mod:`.simulation`: what is simulated, where it runs, and the run.
* :mod:`.report` and :mod:`.picture`: what the user sees at the end.

Powers are in kW and means over an hour, energies in kWh, times in seconds, money in EUR.  Efficiencies,
shares and states of charge are numbers from 0 to 1.
"""
