"""Progress: lines on stderr if it is no terminal, and the log in a run folder."""

import io
import re
import time

import pytest

from jettison.core import progress
from jettison.core.progress import Console, bar, duration, log_in, logged, say, set_quiet, silent


class Terminal(io.StringIO):
    """A text that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Return the text on stderr, with progress switched on and a line every 50 ms."""
    set_quiet(False)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, highlight=False))
    yield text
    set_quiet(True)


@pytest.fixture
def run(tmp_path):
    """Return a folder that holds a run."""
    (tmp_path / "journal.jsonl").write_text("")
    return tmp_path


def read(run):
    """Return the lines of the log without their times, after checking the form of these."""
    lines = (run / "progress.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


def test_a_long_step_shows_without_a_terminal(stderr):
    with bar("compress", 4, done=1) as step:
        time.sleep(0.12)
        step.advance(note="error 0.1")
        time.sleep(0.12)
        step.advance(2)
    first, *rest = stderr.getvalue().splitlines()
    assert re.fullmatch(r"compress: 1 of 4, 0\.\d+ seconds so far", first)
    assert any(re.fullmatch(r"compress: 2 of 4, .* so far, [\d.]+ per second, [\d.]+ seconds left, error 0.1", line)
               for line in rest)  # fmt: skip
    assert re.fullmatch(r"compress: 4 of 4, in .* seconds, [\d.]+ per second", rest[-1])


def test_work_without_steps_shows_if_it_takes_long(stderr, run):
    @progress.waiting("loading")
    def load(seconds):
        time.sleep(seconds)
        return seconds

    with log_in(run):
        assert load(0.0) == 0.0 and stderr.getvalue() == ""
        load(0.13)
        with bar("compress", 1):
            load(0.13)
    before, _, after = stderr.getvalue().partition("compress: 0 of 1")
    assert re.fullmatch(r"(loading: \d\.\d+ seconds so far\n)+", before) and "loading" not in after
    assert before.count("loading") == sum("loading" in line for line in read(run))


def test_slow_steps_are_told_by_what_each_takes():
    running = progress.Bar("recover", 100, 0)
    running._began -= 7200
    running.advance(2)
    assert running.line() == "recover: 2 of 100, 2.0 hours so far, 60.0 minutes each, 4.1 days left"


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    set_quiet(False)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    text = Terminal()
    monkeypatch.setattr(progress, "console", Console(file=text, force_terminal=True, _environ={"TERM": "xterm"}))
    with bar("compress", 2) as step:
        time.sleep(0.12)
        step.advance(2)
    set_quiet(True)
    assert "2/2" in text.getvalue() and "so far" not in text.getvalue()


@pytest.mark.parametrize("quiet", [True, False])
def test_the_log_has_it_all(stderr, run, quiet):
    set_quiet(quiet)
    with log_in(run), log_in(run):
        say("note: this")
        with bar("compress", 2) as step:
            time.sleep(0.12)
            step.advance(2)
        with silent():
            say("not this")
            with bar("nor this", 1):
                pass
    started, *lines = read(run)
    assert re.match(r"process \d+: ", started)
    assert lines[:2] == ["note: this", "compress: 0 of 2"] and lines[-1].startswith("compress: 2 of 2, in 0.")
    assert len(lines) >= 4 and not any("this" in line for line in lines[2:])
    assert ("note: this" in stderr.getvalue()) is not quiet


def test_how_it_ended(run):
    with pytest.raises(ValueError), log_in(run), bar("compress", 2) as step:
        step.advance()
        raise ValueError("no room")
    assert read(run)[2].startswith("compress: 1 of 2") and read(run)[3] == "ended by ValueError: no room"


def test_no_log_where_there_is_no_run(tmp_path):
    """Lines printed before the run exists are logged once it does. A folder that holds no run gets no log file."""
    with log_in(tmp_path / "new"):
        say("planned")
        assert not (tmp_path / "new").exists()
        (tmp_path / "new").mkdir()
        say("still nothing")
        assert not list((tmp_path / "new").iterdir())
        (tmp_path / "new" / "journal.jsonl").write_text("")
        say("begun")
    assert read(tmp_path / "new")[1:] == ["planned", "still nothing", "begun"]


def test_a_log_that_cannot_be_written_is_no_failure(run):
    (run / "progress.log").mkdir()
    with log_in(run):
        say("on it goes")


def test_functions_that_are_logged(run):
    @logged("out")
    def work(model, *, out, dry_run=False):
        say(f"working on {model}")
        return model

    assert work("m", out=run, dry_run=True) == "m" and not (run / "progress.log").exists()
    assert work("m", out=str(run)) == "m"
    assert read(run)[1] == "working on m"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 seconds"), (42, "42 seconds"), (89, "89 seconds"), (90, "1.5 minutes"), (5400, "1.5 hours"),
     (8640000, "100.0 days")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words
