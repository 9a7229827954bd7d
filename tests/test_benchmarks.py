"""The benchmarks: they run, a contender that fails harms nobody else, and the figures are computed right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import growth, report
from benchmarks.contenders import CONTENDERS, find
from benchmarks.figures import TARGETS, Results, Target, judge, median, ratio, spread
from benchmarks.runner import rotated
from benchmarks.workloads import WORKLOADS, Sample

ROOT = Path(__file__).parents[1]

#: A contender that works, but for what is put in place of a comment.
FAKE = """
    from contextlib import asynccontextmanager

    from benchmarks.contender import Operations


    @asynccontextmanager
    async def server():
        # in the server
        yield "nowhere"


    async def call(value):
        # in the call
        return value


    @asynccontextmanager
    async def client(address):
        assert address == "nowhere"
        # in the client
        yield Operations(number=call, record=call)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write contenders, whose names are returned: ``fake("ends", "call", "raise SystemExit")``."""
    package = tmp_path / "fakes"
    package.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name, place="", code=""):
        text = textwrap.dedent(FAKE).replace(f"# in the {place}", code)
        (package / f"{name}.py").write_text(text, encoding="utf-8")
        return f"fakes.{name}"

    return write


def start(module, *args):
    """Start a benchmark as a user would."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONASYNCIODEBUG": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(module, *args):
    """Run a benchmark and return what it has printed."""
    with start(module, *args) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def run_fakes(names, tmp_path, *args):
    """Run contenders quickly, with one workload, and return the results."""
    run("benchmarks", "--quick", "--contenders", ",".join(names), "--output", str(tmp_path), *args)
    return json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


# -- Running ---------------------------------------------------------------------------------------


def test_quick_run(tmp_path):
    """Ours and the floor run, and the results are printed and written down."""
    workloads = ["sequential", "in-flight", "agents", "1-mib"]
    output = run(
        "benchmarks",
        *("--quick", "--contenders", "ours,floor"),
        *("--workloads", ",".join(workloads), "--output", str(tmp_path)),
    )
    assert "failed" not in output
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() == output.strip()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["errors"] == {}
    assert set(results["figures"]) == set(workloads)
    for figures in results["figures"].values():
        assert all(figure > 0 for by_round in figures.values() for figure in by_round.values())
    assert set(results["figures"]["1-mib"]) == {"ours", "floor"}
    assert set(results["figures"]["agents"]) == {"ours"}  # the floor has no agents
    assert set(results["run"]["versions"]) == {"ours", "floor"}


def test_other_workloads(tmp_path):
    """The workloads that the floor does not have, and one that is not made of rounds."""
    workloads = "own-in-flight,one-way,stream,get,observers,start"
    results = run_fakes(["ours"], tmp_path, "--workloads", workloads)
    assert results["errors"] == {}
    assert ",".join(results["figures"]) == workloads


def test_list():
    """All workloads and contenders are listed, also those that are not installed."""
    output = run("benchmarks", "--list")
    assert all(f"  {name} " in output for name in [*WORKLOADS, *CONTENDERS])


def test_unknown_names():
    """A name that does not exist is an error, which says what there is."""
    with start("benchmarks", "--workloads", "nothing") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "there is no workload 'nothing'; there are: sequential, " in errors


def test_growth(tmp_path):
    """The cost of calls is measured for several sizes."""
    small = growth.Series("connections", "connections", (1, 20), (1, 20), 1000.0)
    chosen = [small, growth.Series("memory", "memory", (10, 50))]
    found = asyncio.run(growth.run("ours", chosen, rounds=1, seconds=0.02, timeout=20.0))
    assert found.errors == {}
    assert set(found.costs["connections"]) == {1, 20}
    assert 100 < found.costs["memory"][50][0] < 100_000
    assert "holds" in growth.describe(found, chosen)


# -- Contenders that do not work -------------------------------------------------------------------


def test_contenders_that_fail(fake, tmp_path):
    """Each failure is reported for the contender that fails, and the others go on."""
    good = fake("good")
    bad = {
        fake("raises", "call", "raise ValueError('no idea')"): "ValueError: no idea",
        fake("lies", "call", "value = None"): "AssertionError: number: what came back is wrong",
        fake("ends", "call", "raise SystemExit('enough')"): "the client has ended: enough",
        fake("hangs", "call", "import time; time.sleep(60)"): "the client did not answer within 2.1 s",
        fake("refuses", "client", "raise OSError('not here')"): "the client has ended: OSError: not here",
        fake("dies", "server", "raise OSError('not me')"): "the server has ended: OSError: not me",
        fake("talks", "client", "print('noise')"): None,
    }
    results = run_fakes([*bad, good], tmp_path, "--workloads", "sequential", "--timeout", "2")
    assert results["errors"]["sequential"] == {name: error for name, error in bad.items() if error}
    assert set(results["figures"]["sequential"]) == {good, "fakes.talks"}
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "fakes.raises, sequential: ValueError: no idea" in table


def test_failure_at_one_workload(fake, tmp_path):
    """Who fails at one workload does the others nevertheless."""
    name = fake("picky", "call", "assert isinstance(value, int), 'numbers only'")
    results = run_fakes([name], tmp_path, "--workloads", "in-flight,sequential")
    assert results["errors"] == {"in-flight": {name: "AssertionError: numbers only"}}
    assert set(results["figures"]) == {"sequential"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(fake, number):
    """No process is left when a run is interrupted, even if one hangs."""
    name = fake("hangs", "call", "import time; time.sleep(60)")
    with start(
        "benchmarks", "--quick", "--contenders", f"ours,{name}", "--workloads", "sequential"
    ) as process:
        children = wait_for_children(process.pid, 4)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.strip().endswith("ended before it was done")
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def wait_for_children(pid, count):
    """Return the child processes as soon as there are so many."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if len(children) >= count:
            return children
        time.sleep(0.02)
    raise AssertionError(f"there are not {count} processes")


# -- Figures ---------------------------------------------------------------------------------------


def test_median_and_spread():
    """The spread is half of the range, as a share of the median."""
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert spread([3.0, 1.0, 2.0]) == 0.5
    assert spread([2.0]) == 0.0


def test_ratio_is_the_median_of_the_rounds():
    """Rounds are compared one by one, so that a slow round does not matter if it was slow for both."""
    ours = {0: 20.0, 1: 2.0, 2: 30.0}
    reference = {0: 10.0, 1: 1.0, 2: 10.0}
    assert ratio(ours, reference) == 2.0
    assert ratio(ours, reference, more_is_better=False) == 0.5


def test_ratio_needs_common_rounds():
    """A round in which only one of both was measured does not count."""
    assert ratio({0: 1.0, 1: 6.0}, {1: 2.0, 2: 5.0}) == 3.0
    assert ratio({0: 1.0}, {1: 2.0}) is None


def test_figures_of_workloads():
    """A rate is the count by the time, a cost the amount by the count."""
    assert WORKLOADS["sequential"].figure(Sample(100, 2.0)) == 50.0
    assert WORKLOADS["16-mib"].figure(Sample(10, 2.0)) == 80.0
    assert WORKLOADS["memory"].figure(Sample(10, 4000.0)) == 400.0


def make_results(**figures):
    """Return results of one workload ``in-flight``, or of that with the name."""
    results = Results()
    workload = figures.pop("workload", "in-flight")
    for name, by_round in figures.items():
        for number, figure in enumerate(by_round):
            results.add(workload, name, number, figure)
    return results


def test_first_reference_that_was_measured():
    """What was not measured, or failed, is no reference."""
    results = make_results(workload="agents", aiomas=[5.0], mango=[2.0], ours=[10.0])
    assert results.reference("agents") == "aiomas"
    results.add_error("agents", "aiomas", "it does not run")
    assert results.reference("agents") == "mango"
    assert results.of("agents", "aiomas") == {}


def test_target_against_a_reference():
    """A ratio has to be reached; if the reference is missing it was not measured."""
    target = Target("in-flight", "ours", 2.0, [("xoscar", 1.0)])
    assert judge(target, make_results(ours=[4.0, 8.0], xoscar=[2.0, 4.0])).holds is True
    assert judge(target, make_results(ours=[3.9], xoscar=[2.0])).holds is False
    assert judge(target, make_results(ours=[3.9])).holds is None


def test_target_against_a_stand_in():
    """For a slower reference that stands in the target is higher."""
    target = Target("agents", "ours", 2.0, [("aiomas", 1.0), ("mango", 4.0)])
    verdict = judge(target, make_results(workload="agents", ours=[9.0], mango=[1.0]))
    assert (verdict.reference, verdict.wanted, verdict.reached, verdict.holds) == ("mango", 8.0, 9.0, True)


def test_target_without_a_reference():
    """A cost must not be exceeded."""
    target = Target("memory", "ours", 1000.0)
    assert judge(target, make_results(workload="memory", ours=[900.0, 1000.0, 2000.0])).holds is True
    assert judge(target, make_results(workload="memory", ours=[1001.0])).holds is False


def test_targets_and_references_exist():
    """What the targets name is there."""
    for target in TARGETS:
        names = [target.contender, *(name for name, _ in target.references)]
        assert target.workload in WORKLOADS
        assert all(name in CONTENDERS for name in names)


def test_rotation():
    """Each round begins with another contender."""
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_table():
    """A table has figures, spread, ratio, dashes, and errors as notes."""
    results = make_results(**{"ours": [90.0, 110.0], "aio-msgpack-rpc": [50.0, 50.0]})
    results.add_error("in-flight", "floor", "it broke")
    results.add("batch", "ours", 0, 12_345.0)
    text = report.tables(results, ["ours", "floor", "aio-msgpack-rpc", "xoscar"])
    assert "100 ±10%, 2.00" in text
    assert "50 ±0%, **1**" in text
    assert "12,300" in text
    assert "failed [1]" in text
    assert "[1] floor, in-flight: it broke" in text
    assert "xoscar" not in text  # it has nothing to show


def test_straight_line():
    """The fit is the cost of a further call and what is there anyway."""
    slope, offset = growth.fit({10: 30.0, 20: 25.0, 40: 22.5})  # 100 + 20 for each
    assert slope == pytest.approx(20.0)
    assert offset == pytest.approx(100.0)


def test_growth_of_a_cost():
    """Growth is the ratio of the larger to the smaller one."""
    found = growth.Growth()
    for number in range(3):
        found.add("agents", 10, number, 2.0 + number)
        found.add("agents", 100, number, 3.0 + 1.5 * number)
    series = growth.Series("agents", "agents", (10, 100), (10, 100), 1.4)
    assert found.ratio("agents", 10, 100) == pytest.approx(1.5)
    assert growth.verdict(found, series, (10, 100)).endswith("reached 1.50: **does not hold**")


def test_own_contender():
    """A name with a dot is that of a module."""
    assert find("my.module").module == "my.module"
    with pytest.raises(KeyError):
        find("nobody")
