"""Measure how fast aiomas_ng is, next to other libraries, and how its costs grow.

``python -m benchmarks`` compares the contenders, ``python -m benchmarks.growth`` shows the growth;
``--help`` has the options.

::

    runner     starts a pair of processes for each contender, lets them work in turn
      │ lines of JSON
    process    what runs in such a process: a server, or a client with
      │          workloads   what is measured, the same for all contenders
      │          contenders  one module for each library: how it offers and makes calls
    figures    medians, ratios, targets
    report     table and plot
"""
