"""Devices: the table, device files of users, measuring this machine, and the command."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.core.kept import read_record, write_record
from jettison.devices import measuring
from jettison.devices.device import SOURCED, Device, device_names, find_device
from jettison.devices.machine import measure

EXPECTED = {
    "strix-point", "strix-halo", "lunar-lake", "snapdragon-x-elite", "apple-m4", "apple-m4-max", "jetson-agx-orin",
    "jetson-orin-nano", "raspberry-pi-5", "quest-3", "phone-snapdragon-8-gen-3", "rtx-4090", "h100", "h200",
    "server-2core",
}  # fmt: skip
GOOD = {"bandwidth": 5e10, "memory": 4e9, "flops": {"fp32": 1e12}}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Make measuring take almost no time, without a GPU. Returns the file that keeps the result."""
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {"READ_BYTES": 1 << 22, "MATRIX": 64, "REPEATS": 5, "ENOUGH": 0.0}.items():
        monkeypatch.setattr(measuring, name, value)
    return tmp_path / "device.json"


@pytest.fixture
def own(tmp_path):
    """Return own(content), which writes a device file of fields or of text and returns its path."""

    def write(content, name="headset.yaml"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    return write


class TestRows:
    def test_all_are_there(self):
        assert set(device_names()) >= EXPECTED and device_names() == sorted(device_names())

    @pytest.mark.parametrize("name", sorted(EXPECTED))
    def test_every_row_is_sound(self, name):
        device = find_device(name)
        assert 1e10 < device.bandwidth < 1e13 and 1e9 < device.memory < 1e12
        assert device.cache < 1e8 and 5e-7 < device.overhead < 1e-4
        assert set(device.sources) == set(SOURCED) and all(len(text) > 8 for text in device.sources.values())
        assert 0 < device.peak("fp32") <= device.peak("fp16") <= device.peak("int8")
        assert 1e-3 < device.bandwidth / device.peak("fp32") < 1  # an error by a factor of 1000 would leave this range
        assert device.title != name

    def test_what_is_stated_is_not_what_a_reader_gets(self):
        assert find_device("strix-halo").bandwidth == pytest.approx(0.85 * 256e9)
        assert find_device("server-2core").bandwidth == 50e9

    def test_figures_from_memory_say_so(self):
        assert find_device("quest-3").unverified == ["bandwidth", "memory", "flops", "overhead"]
        assert find_device("server-2core").unverified == []


class TestDevice:
    def test_the_nearest_type_that_is_known(self):
        make = lambda **flops: Device(name="d", title="d", bandwidth=1e9, memory=1e9, flops=flops)
        peaks = lambda device: [device.peak(kind) for kind in ("fp32", "fp16", "int8")]
        assert peaks(make(fp32=1, fp16=2, int8=4)) == [1, 2, 4]
        assert peaks(make(fp32=1, int8=4)) == [1, 1, 4]
        assert peaks(make(fp16=2, int8=4)) == [2, 2, 4]
        assert peaks(make(fp32=1, fp16=2)) == [1, 2, 2]
        assert peaks(make(int8=4)) == [4, 4, 4]
        assert make(fp32=1, fp16=2).peak() == 2

    def test_an_unknown_type(self):
        with pytest.raises(UsageError, match="unknown type of flops 'fp61'.*did you mean 'fp16'.*fp16, fp32, int8"):
            find_device("h100").peak("fp61")

    def test_sources_for_people(self):
        make = lambda sources: Device("d", "d", 1e9, 1e9, {"fp32": 1e9}, sources=sources).source
        assert make({}) == "not stated"
        assert make({"bandwidth": "a sheet", "memory": "a sheet"}) == "a sheet"
        assert make({"bandwidth": "a sheet", "memory": "a guess"}) == "bandwidth: a sheet; memory: a guess"


class TestFiles:
    def test_a_file_of_ones_own(self, own):
        device = find_device(own("bandwidth: 50e9\nmemory: 4.0e+9\nflops: 1.0e+12\nshare: 0.5\nsource: a sheet\n"))
        assert (device.name, device.title, device.bandwidth, device.memory) == ("headset", "headset", 25e9, 4e9)
        assert (device.flops, device.cache, device.overhead, device.share) == ({"fp32": 1e12}, 0, 0, 0.5)
        assert device.source == device.sources["cache"] == "a sheet"

    def test_all_fields(self, own):
        sources = {"sources": {"flops": "counted"}, "source": "a sheet"}
        more = {"title": "Mine", "cache": 1e6, "overhead": 1e-5, "flops": {"int8": 4e12}, "measured": []}
        device = find_device(own(GOOD | more | sources))
        assert (device.title, device.cache, device.overhead, device.flops) == ("Mine", 1e6, 1e-5, {"int8": 4e12})
        assert (device.sources["flops"], device.sources["memory"]) == ("counted", "a sheet")
        assert device.bandwidth == pytest.approx(0.85 * 5e10)

    @pytest.mark.parametrize(
        ("field", "low", "high"),
        [
            ("bandwidth", 1e8, 1e14), ("memory", 1e6, 1e14), ("flops", 1e6, 1e17),
            ("cache", 0, 1e12), ("overhead", 0, 0.1), ("share", 1e-6, 1),
        ],
    )  # fmt: skip
    def test_the_ends_of_each_range(self, own, field, low, high):
        for inside in (low, high):
            find_device(own(GOOD | {field: inside}))
        for outside in (0.99 * low if low > 1 else -0.5, 1.01 * high):
            with pytest.raises(UsageError, match=re.escape(f"device 'headset': {field} = {outside!r}; valid: ")):
                find_device(own(GOOD | {field: outside}))

    @pytest.mark.parametrize("field", ["bandwidth", "memory", "flops", "cache", "overhead", "share"])
    @pytest.mark.parametrize("text", [".nan", ".inf", "50GB/s", "true", "null", "[1]", "1" + 90 * "0", "2026-01-01"])
    def test_what_is_no_number(self, own, field, text):
        lines = {name: json.dumps(value) for name, value in GOOD.items()} | {field: text}
        with pytest.raises(UsageError, match=rf"device 'headset': {field} = .*; valid: .*1"):
            find_device(own("\n".join(f"{name}: {value}" for name, value in lines.items())))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"share": 0}, "share = 0; valid: a part of the bandwidth, above 0 and at most 1"),
            ({"bandwith": 1}, "unknown field 'bandwith' of device 'headset'.*did you mean 'bandwidth'"),
            ({"flops": {"fp61": 1e12}}, "unknown type of flops 'fp61'.*did you mean 'fp16'"),
            ({"flops": {"fp16": "fast"}}, "flops.fp16 = 'fast'; valid: per second, from 1e6 to 1e17"),
            ({"flops": {"fp32": 1e12, "int8": 1e18}}, "flops.int8 = .1e.18"),
            ({"flops": {}}, "flops = {}; valid: a number by type, for fp32, fp16, int8"),
            ({"sources": "a sheet"}, "sources = 'a sheet'; valid: a text for each of bandwidth, memory"),
            ({"sources": {"speed": "a sheet"}}, "unknown figure 'speed'"),
        ],
    )
    def test_bad_fields_are_named(self, own, change, words):
        with pytest.raises(UsageError, match=words):
            find_device(own(GOOD | change))

    @pytest.mark.parametrize("field", sorted(GOOD))
    def test_a_field_that_is_missing(self, own, field):
        with pytest.raises(UsageError, match=f"{field} = None"):
            find_device(own({name: value for name, value in GOOD.items() if name != field}))

    @pytest.mark.parametrize(("text", "words"), [("- 1", "a mapping"), ("a: [", "not valid YAML"), ("", "a mapping")])
    def test_files_that_are_no_device(self, own, text, words):
        with pytest.raises(UsageError, match=words):
            find_device(own(text))

    def test_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "d.yaml").write_bytes(b"\xff\xfe\x00bandwidth")
        with pytest.raises(UsageError, match="device file .* is not UTF-8"):
            find_device(tmp_path / "d.yaml")

    def test_an_unknown_name(self):
        with pytest.raises(UsageError, match="unknown device 'strix'.*did you mean"):
            find_device("strix")


class TestMeasure:
    def test_a_row_of_this_machine(self, small):
        row = measure()
        assert all(row[figure] > 0 for figure in ("bandwidth", "memory", "overhead")) and 0 < row["share"] <= 1
        assert set(row["sources"]) == set(SOURCED) and "fp32" in row["flops"]
        threads = torch.get_num_threads()
        assert {(way["threads"], way["streams"]) for way in row["measured"]} >= {(1, 1), (1, 4), (threads, 2)}
        assert row["bandwidth"] == max(way["bandwidth"] for way in row["measured"])
        device = find_device("this")
        assert (device.bandwidth, device.flops) == (row["share"] * row["bandwidth"], row["flops"])
        assert device.title.startswith("This machine: ") and device.unverified == []

    def test_measured_once(self, small, monkeypatch):
        calls = []
        monkeypatch.setattr(measuring, "_figures", lambda device: calls.append(device) or {"memory": len(calls)})
        first = measure()
        assert measure() == first and len(calls) == 1
        assert measure(again=True)["memory"] == 2 and measure()["memory"] == 2

    def test_what_was_kept_for_another_layout_host_or_by_accident(self, small, monkeypatch):
        monkeypatch.setattr(measuring, "_figures", lambda device: {"memory": 7})
        measure()
        record = json.loads(small.read_text())
        old = {"host": record["host"], "bandwidth": 1e10, "memory": 1, "flops": 1e12}
        for other in (old, record | {"memory": 1, "host": "another"}, record | {"memory": 8}, [1], "{broken"):
            small.write_text(other if isinstance(other, str) else json.dumps(other))
            assert measure()["memory"] == 7

    @pytest.mark.parametrize(("threads", "streams"), [(1, 1), (1, 4), (2, 1), (2, 2), (3, 2)])
    def test_a_read_touches_every_byte_once(self, monkeypatch, threads, streams):
        monkeypatch.setattr(measuring, "CHUNK_BYTES", 40)  # 10 numbers
        data, sums = torch.arange(96.0), []
        pool = SimpleNamespace(map=lambda work, turns: [sums.append(sum(work(turn))) for turn in turns])
        measuring._read(data, threads, streams, pool)
        assert len(sums) == threads and sum(sums) == data.sum()
        assert sums[0] == data[: 96 // threads].sum()

    def test_streams_are_read_by_turns(self, monkeypatch):
        monkeypatch.setattr(measuring, "CHUNK_BYTES", 8)  # 2 numbers
        chunks = []
        pool = SimpleNamespace(map=lambda work, turns: chunks.extend(chunk.tolist() for chunk in turns[0]) or [])
        measuring._read(torch.arange(8.0), 1, 2, pool)
        assert chunks == [[0, 1], [4, 5], [2, 3], [6, 7]]

    def test_threads_of_torch_are_as_before(self, small):
        before = torch.get_num_threads()
        ways = [(row["threads"], row["streams"]) for row in measuring._read_table(5)]
        assert ways == [(threads, streams) for threads in (1, 2, 4, 5) for streams in (1, 2, 4)]
        assert torch.get_num_threads() == before

    def test_a_type_that_torch_lacks_is_left_out(self, small, monkeypatch):
        def refuse(*_):
            raise RuntimeError("not on this processor")

        monkeypatch.setattr(torch, "_int_mm", refuse)
        assert set(measure()["flops"]) == {"fp32", "fp16"}
        monkeypatch.delattr(torch, "_int_mm")
        assert measuring._product_peak(torch.int8, torch.device("cpu")) == 0

    def test_widths_double_until_one_is_long(self, monkeypatch):
        widths = []

        def timed(work, device):
            widths.append(len(work.args[0]))
            return {256: 1e-3, 512: 2e-3, 1024: 1.0}[widths[-1]]

        monkeypatch.setattr(measuring, "_best", timed)
        monkeypatch.setattr(measuring, "MATRIX", 8192)
        peak = measuring._product_peak(torch.float32, torch.device("cpu"))
        assert widths == [256, 512, 1024] and peak == 2 * 512**3 / 2e-3

    def test_the_last_level_of_cache(self, tmp_path):
        entries = [("cpu0", 0, 1, "0", "48K"), ("cpu0", 1, 3, "0-1", "32768K"), ("cpu1", 1, 3, "0-1", "32768K")]
        for cpu, index, level, shared, size in [*entries, ("cpu2", 1, 3, "2", "16M")]:
            folder = tmp_path / cpu / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("shared_cpu_list", shared), ("size", size)):
                (folder / name).write_text(f"{text}\n")
        (tmp_path / "cpu3/cache/index0").mkdir(parents=True)  # a cache folder without files
        assert measuring._last_cache(tmp_path) == (32 + 16) << 20
        assert measuring._last_cache(tmp_path / "none") == 0

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
        row = measure()
        assert row["measured"] == [] and row["bandwidth"] > 1e10 and row["flops"]["fp16"] > row["flops"]["fp32"]


class TestCommands:
    def test_the_table(self, jettison, small, tmp_path):
        code, out, _ = jettison("devices", "--quiet", "--json", tmp_path / "all.json")
        assert code == 0 and "not verified" in out
        lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
        assert re.search(r"218 GB/s +128 GB +59\.4 +59\.4 +10 µs +\* +AMD", lines["strix-halo"])
        assert re.search(r"43\.5 GB/s +8 GB +3\.68 +20 µs +\* +Meta", lines["quest-3"])
        assert "1,979" in lines["h100"] and "*" not in lines["server-2core"] and "This machine" in lines["this"]
        rows = {row["name"]: row for row in json.loads((tmp_path / "all.json").read_text())}
        assert set(rows) == {"this", *device_names()}
        assert rows["h100"]["flops"]["fp16"] == 989.4e12 and rows["h100"]["sources"]["bandwidth"]

    def test_measure_anew(self, jettison, small, tmp_path):
        measure()
        write_record(small, read_record(small) | {"memory": 1.0})
        assert measure()["memory"] == 1.0
        code, out, _ = jettison("devices", "measure", "--quiet", "--json", tmp_path / "this.json")
        result = json.loads((tmp_path / "this.json").read_text())
        assert code == 0 and result == measure() and result["memory"] == measuring.psutil.virtual_memory().total
        rows = re.findall(r"^(\d+) +(\d+) +[\d.]+ [KMGT]B/s", out, re.MULTILINE)
        assert rows == [(str(way["threads"]), str(way["streams"])) for way in result["measured"]]
        for label in ("fp32", "fp16", "overhead", "cache"):
            assert re.search(rf"^{label} ", out, re.MULTILINE), label

    def test_show_says_where_figures_are_from(self, jettison, tmp_path):
        code, out, _ = jettison("devices", "show", "raspberry-pi-5", "--json", tmp_path / "pi.json")
        words = " ".join(out.split())
        assert code == 0 and "11.5 GB/s LPDDR4X-4267" in words and "67% of 17.1 GB/s" in words
        assert "strix-halo" not in words and "0.307 Tflop/s" in words and "3 µs waking 4 threads" in words
        assert json.loads((tmp_path / "pi.json").read_text())["memory"] == 8e9

    def test_show_a_file_with_text_that_looks_like_markup(self, jettison, own):
        code, out, _ = jettison("devices", "show", own(GOOD | {"title": "[/b]", "source": "[/red] page 3"}))
        assert code == 0 and "[/b]" in out and "[/red] page 3" in out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [(["show", "strix"], "unknown device 'strix'"), (["mesure"], "measure"), (["--measure"], "--measure")],
    )
    def test_bad_usage(self, jettison, arguments, words):
        code, _, err = jettison("devices", *arguments)
        assert code == 2 and words in err

    @pytest.mark.parametrize("arguments", [[], ["measure"], ["show"]])
    def test_help_shows_an_example(self, jettison, arguments):
        code, out, _ = jettison("devices", *arguments, "--help")
        assert code == 0 and "$ jettison devices" in out and "--json" in out
