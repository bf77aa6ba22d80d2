"""Users per device and energy per frame; the paper's table."""

import json

import pytest

from jettison.core.errors import UsageError
from jettison.offload.capacity import (
    Processor,
    Radio,
    Times,
    energy,
    find_constants,
    headlines,
    paper_table,
    read_times,
    users,
)

TIMES = {"local_s": 0.1, "transfer_s": 0.2, "worker_s": 0.05, "whole_s": 0.5}


class TestPaper:
    def test_users(self):
        """The figure's data give the published 2.37x at k = 14: 3.80 offloaded users and 2.08 others."""
        rows = {row["k"]: row for row in paper_table()}
        assert list(rows) == [2, 4, 6, 8, 10, 12, 14]
        assert rows[14]["offloaded"] == pytest.approx(3.80, abs=0.01)
        assert rows[14]["extra"] == pytest.approx(2.08, abs=0.01)
        assert rows[14]["total"] == pytest.approx(5.88, abs=0.005) and round(rows[14]["ratio"], 2) == 2.37
        assert rows[2]["extra"] == 0 and rows[2]["total"] == pytest.approx(1 / 0.354)

    def test_the_two_headline_figures_are_of_different_rows(self):
        rows = {row["k"]: row for row in paper_table()}
        assert rows[14]["loss_rise"]["1"] == pytest.approx(0.083, abs=5e-4)
        assert rows[12]["loss_rise"]["1"] == pytest.approx(0.065, abs=5e-4)
        found = headlines()
        assert found["users_ratio"] == {"published": 2.37, "rows": [14]}
        assert found["loss_rise"] == {"published": 0.065, "rows": [2, 12]} and found["both"] == []


class TestUsers:
    def test_the_slower_path_sets_the_rate(self):
        served = users(Times(**TIMES), 1.0)
        assert served.offloaded == pytest.approx(4) and served.extra == pytest.approx((1 - 0.4) / 0.5)
        assert served.whole == 2 and served.ratio == pytest.approx(5.2 / 2)
        slow_device = users(Times(**TIMES | {"local_s": 0.4}), 1.0)
        assert slow_device.offloaded == pytest.approx(2.5) and slow_device.extra == pytest.approx(0, abs=1e-12)

    def test_what_does_not_pay(self):
        assert users(Times(**TIMES | {"local_s": 0.45, "whole_s": 0.4}), 1.0).ratio < 1

    def test_no_rate(self):
        with pytest.raises(UsageError, match="all 0"):
            users(Times(local_s=0.0, transfer_s=0.0, worker_s=0.0, whole_s=1.0), 1.0)
        with pytest.raises(UsageError, match="period_s = 0"):
            users(Times(**TIMES), 0)


class TestEnergy:
    def test_by_hand(self):
        radio = Radio(up_j_per_byte=2e-6, down_j_per_byte=1e-6, active_w=0.5, source="this test")
        spent = energy(Times(**TIMES, bytes_up=1000, bytes_down=4000), radio, Processor(busy_w=3.0, source="this test"))
        assert spent.compute_mj == pytest.approx(300) and spent.whole_mj == pytest.approx(1500)
        assert spent.radio_mj == pytest.approx(1e3 * (0.002 + 0.004 + 0.1))
        assert spent.ratio == pytest.approx(406 / 1500)

    def test_constants_have_sources(self, tmp_path):
        for name in ("wifi", "lte"):
            radio, processor = find_constants(name)
            assert radio.source and processor.source and radio.up_j_per_byte > radio.down_j_per_byte
        with pytest.raises(UsageError, match="unknown radio 'wify'.*did you mean 'wifi'"):
            find_constants("wify")
        own = tmp_path / "own.yaml"
        own.write_text("radios: {mine: {up_j_per_byte: -1, down_j_per_byte: 0, active_w: 0, source: me}}")
        with pytest.raises(UsageError, match="up_j_per_byte of radios mine = -1"):
            find_constants("mine", file=own)
        own.write_text("radios: {mine: {up_j_per_byte: 1.0e-6, down_j_per_byte: 0.0, active_w: 0.0, source: me}}")
        with pytest.raises(UsageError, match="unknown processor"):
            find_constants("mine", file=own)


class TestReports:
    def test_times_of_a_report(self, tmp_path):
        file = tmp_path / "report.json"
        file.write_text(json.dumps({"measured": TIMES | {"bytes_up": 7, "bytes_down": 9}}))
        assert read_times(file) == Times(**TIMES, bytes_up=7, bytes_down=9)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{}", "no measured transfer"),
            ('{"measured": {"local_s": 0, "whole_s": 1}}', "no measured transfer"),
            (json.dumps({"measured": TIMES | {"whole_s": 0}}), "whole_s of .* = 0"),
            (json.dumps({"measured": TIMES | {"worker_s": "1"}}), "worker_s"),
            (json.dumps({"measured": TIMES | {"other": 1}}), "unknown field 'other'"),
            ("{", "cannot read a report"),
        ],
    )
    def test_other_files(self, tmp_path, text, message):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_times(tmp_path / "report.json")
