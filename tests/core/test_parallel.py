"""The parallel map: order, errors that name the item, processes, and Ray if an address is given."""

import math
import os
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from forking import alive
from mapped import die, fail_or_sleep, picky, slow_square

from jettison.core import parallel
from jettison.core.errors import JettisonError, UsageError


def test_here():
    assert parallel.map(picky, range(2)) == [0, 1]
    assert parallel.map(picky, []) == []


def test_processes_keep_the_order():
    results = parallel.map(slow_square, range(5), workers=2)
    assert [square for square, _ in results] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_the_item(workers):
    with pytest.raises(JettisonError, match="^2 failed: ValueError: two is not liked"):
        parallel.map(picky, [1, 2], workers=workers)
    with pytest.raises(UsageError, match="three = 3"):
        parallel.map(picky, [1, 3], workers=workers)


def test_a_dead_worker_is_told():
    with pytest.raises(JettisonError, match="workers died"):
        parallel.map(die, range(3), workers=2)


def test_nobody_waits_for_work_that_is_given_up():
    with pytest.raises(UsageError, match="zero is not valid"):
        parallel.map(fail_or_sleep, [0, 1], workers=2)
    assert not active_children()


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks for processes there")
def test_workers_end_with_the_process_that_waits(tmp_path):
    """They also end if the waiting process is killed."""
    script = f"""if __name__ == '__main__':
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from jettison.core import parallel
        import mapped
        parallel.map(mapped.slow_start, [{str(tmp_path)!r}] * 2, workers=2)"""
    (tmp_path / "waits.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "waits.py")], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(process.pid, 0)) >= 3
    process.kill()
    process.wait()
    assert not alive(process.pid)


def test_workers():
    with pytest.raises(UsageError, match="workers = 0"):
        parallel.map(picky, [1], workers=0)


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"jettison\[ray\]"):
        parallel.map(picky, [1], address="auto")


def test_ray_by_its_interface(monkeypatch):
    """A stand-in for Ray with the five functions that are used; it finishes the last task first."""

    class RayTaskError(Exception):
        def __init__(self, cause):
            self.cause = cause

    class Reference:
        def __init__(self, call):
            self.call = call

    def get(reference):
        try:
            return reference.call()
        except Exception as error:
            raise RayTaskError(error) from error

    calls, fake = [], ModuleType("ray")
    fake.is_initialized = lambda: False
    fake.init = lambda address, log_to_driver: calls.append(address)
    fake.shutdown = lambda: calls.append("down")
    fake.remote = lambda function: SimpleNamespace(remote=lambda *arguments: Reference(lambda: function(*arguments)))
    fake.wait = lambda waiting, num_returns: (waiting[-1:], waiting[:-1])
    fake.get, fake.exceptions = get, SimpleNamespace(RayTaskError=RayTaskError)
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert parallel.map(picky, [0, 1, 5], address="ray://host:10001") == [0, 1, 5]
    assert calls == ["ray://host:10001", "down"]
    with pytest.raises(UsageError, match="three = 3"):
        parallel.map(picky, [3], address="auto")
    with pytest.raises(JettisonError, match="2 failed: ValueError"):
        parallel.map(picky, [2], address="auto")


@pytest.mark.slow
def test_on_ray_itself():
    pytest.importorskip("ray")
    assert parallel.map(math.sqrt, [4.0, 9.0, 1.0], address="local") == [2.0, 3.0, 1.0]
    with pytest.raises(JettisonError, match=r"-1\.0 failed: ValueError"):
        parallel.map(math.sqrt, [-1.0], address="local")
