"""XRBench with an offloaded model: simulated with measured times, and live on a worker."""

import json

import pytest
from offloading import serving

from benchmarks.fixtures.offload import TOKEN, small_module
from jettison.core.errors import JettisonError
from jettison.graph.described_files import save_described
from jettison.offload.capacity import Times
from jettison.xr.costs import Cost, Costs
from jettison.xr.definitions import find_scenario
from jettison.xr.offloaded import Remote, local_part, offload_costs
from jettison.xr.simulator import simulate

TIMES = {"local_s": 0.0, "transfer_s": 0.004, "worker_s": 0.002, "whole_s": 0.05, "bytes_up": 100, "bytes_down": 1000}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a scenario whose avatar decoder is a described model, a report, and a token."""
    save_described(small_module(), tmp_path / "decoder")
    (tmp_path / "avatar.yaml").write_text(
        "avatar:\n  title: Avatar call\n  tasks: [{model: ES, fps: 8}, {model: AV, fps: 20}]\n"
        f"  models: {{AV: {{title: Avatar decoder, file: {tmp_path / 'decoder'}}}}}\n"
    )
    (tmp_path / "report.json").write_text(json.dumps({"measured": TIMES}))
    (tmp_path / "token").write_bytes(TOKEN)
    return tmp_path


class TestSimulated:
    def test_a_link_takes_the_model_off_the_unit(self, folder):
        """On one unit of 50 ms the avatar leaves no room for the eyes; on the link it does."""
        scenario = find_scenario(folder / "avatar.yaml")
        own = Costs(("headset",), ({"ES": Cost(20.0, 1.0), "AV": Cost(50.0, 5.0)},))
        link = offload_costs(own, "AV", Times(**TIMES))
        assert link.units == ("headset", "offload") and set(link.rows[0]) == {"ES"}
        assert link.rows[1]["AV"].latency_ms == pytest.approx(6.0) and 0 < link.rows[1]["AV"].energy_mj < 5
        runs = [simulate(scenario, costs, horizon_ms=1000, jitter=False) for costs in (own, link)]
        late = [sum(f.status == "dropped" or f.lateness > 0 for f in run.frames) for run in runs]
        assert late[0] > 5 and late[1] == 0
        assert all(frame.unit == 1 for frame in runs[1].of("AV"))

    def test_by_the_command(self, jettison, folder):
        code, out, err = jettison(
            "xr",
            "run",
            folder / "avatar.yaml",
            "--offload",
            f"AV={folder / 'report.json'}",
            "--json",
            folder / "r.json",
        )
        assert code == 0, err
        assert "AV" in out and json.loads((folder / "r.json").read_text())["run"]["units"][-1] == "offload"
        code, _, err = jettison("xr", "run", folder / "avatar.yaml", "--offload", f"HT={folder / 'report.json'}")
        assert code == 2 and "unknown model 'HT'" in err

    def test_the_local_part(self, folder):
        scenario = find_scenario(folder / "avatar.yaml")
        assert [task.name for task in local_part(scenario, {"AV": "x"}).tasks] == ["ES"]


class TestLive:
    def test_by_the_command(self, jettison, folder):
        with serving(folder / "decoder") as worker:
            code, out, err = jettison(
                "xr", "live", folder / "avatar.yaml", "--size", "tiny", "--seconds", 1, "--rounds", 2, "-q",
                "--offload", f"AV={worker.address}", "--token-file", folder / "token", "--json", folder / "l.json",
            )  # fmt: skip
        assert code == 0, err
        result = json.loads((folder / "l.json").read_text())
        outcome = result["offloaded"]["AV"]
        done = [frame for frame in result["run"]["frames"] if frame[0] == "AV" and frame[4] == "done"]
        assert outcome.get("remote", 0) > 0 and sum(outcome.values()) == len(done) + 3 + 2  # warm-up and rounds
        assert result["run"]["units"][-1] == "offload" and "AV offloaded" in out
        assert all(span[0] == 1 for frame in done for span in frame[6])

    def test_without_a_worker(self, folder, monkeypatch):
        monkeypatch.setattr("jettison.xr.offloaded.CONNECT_SECONDS", 0.1)
        with pytest.raises(JettisonError, match="model 'AV': no worker at 127.0.0.1:1: ConnectionRefused"):
            Remote("AV", "127.0.0.1:1", TOKEN, str(folder / "decoder"), 0.05).open()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--offload", "AV=127.0.0.1:1"), "--token-file"),
            (("--offload", "ES=127.0.0.1:1", "--token-file", "token"), "needs a described model"),
            (("--offload", "XX=127.0.0.1:1", "--token-file", "token"), "unknown model 'XX'"),
        ],
    )
    def test_bad_usage(self, jettison, folder, monkeypatch, options, message):
        monkeypatch.chdir(folder)
        code, _, err = jettison("xr", "live", "avatar.yaml", *options)
        assert code == 2 and message in err
