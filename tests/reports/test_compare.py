"""The comparison of runs."""

import copy
from functools import partial

import pytest
from runs import FULL, SPEED, Page, drawn, make_run, without_stage

from jettison.core.errors import UsageError
from jettison.reports.compare import write_comparison


@pytest.fixture
def made(tmp_path):
    """Return made(name, ...), which makes a run in the temporary folder."""
    return partial(make_run, tmp_path)


class TestComparison:
    @pytest.fixture
    def folders(self, made):
        return [made("full", speed=SPEED), made("plain", results=without_stage("recovered"), recovery=None)]

    def test_rows(self, folders, tmp_path):
        result = write_comparison(folders, tmp_path / "c.html")
        full, plain = result["rows"]
        assert (full["name"], full["recipe"], full["stage"], full["bytes"]) == ("full", "mine", "recovered", 5_600_000)
        assert full["bits_per_weight"] == 3.75 and full["decode_tokens_per_second"] == 62.5
        assert full["texts"]["books-evaluation"] == {
            "perplexity": 39.5, "kl": 0.05, "agreement": 0.95, "recovered": pytest.approx(0.75),
        }  # fmt: skip
        assert (plain["stage"], plain["bytes"], plain["decode_tokens_per_second"]) == ("quantized", 5_000_000, None)
        assert plain["texts"]["wikitext2"]["recovered"] is None
        assert result["texts"] == ["books-evaluation", "wikitext2"] and result["notes"] == []

    def test_page(self, folders, tmp_path):
        out = tmp_path / "c.html"
        write_comparison(folders, out)
        parsed = Page(out.read_text(encoding="utf-8"))
        assert parsed.sections == {"runs", "text-1", "text-2", "recovery"} and parsed.outside == []
        (discs,) = drawn(out, "scatter-0")
        assert discs["x"] == [5.6, 5.0] and discs["y"] == [39.5, 53.5]
        (curve,) = drawn(out, "recovery-chart")  # the other run has no recovery
        assert curve["y"] == [0.5, 0.25, 0.125]
        first = out.read_bytes()
        write_comparison(folders, out)
        assert out.read_bytes() == first

    def test_curves_are_of_what_each_run_lowered(self, folders, made, tmp_path):
        out = tmp_path / "c.html"
        write_comparison(folders, out)
        assert "KL from the original in nats, at every step" in out.read_text(encoding="utf-8")
        write_comparison([*folders, made("features", recovery=FULL["recovery"] | {"features": 2.0})], out)
        both = "KL from the original in nats; or KL from the original in nats + 2 times the relative squared error"
        assert both in out.read_text(encoding="utf-8")

    def test_only_common_texts(self, folders, made, tmp_path):
        results = copy.deepcopy(FULL["results"])
        for result in results.values():
            del result["texts"]["books-evaluation"]
        assert write_comparison([*folders, made("less", results=results)], tmp_path / "c.html")["texts"] == [
            "wikitext2"
        ]
        for result in results.values():
            result["texts"] = {"another": result["texts"]["wikitext2"]}
        with pytest.raises(UsageError, match="no text in common"):
            write_comparison([*folders, made("other", results=results)], tmp_path / "d.html")
        assert not (tmp_path / "d.html").exists()

    def test_what_limits_the_comparison_is_said(self, folders, made, tmp_path):
        results = copy.deepcopy(FULL["results"])
        results["recovered"]["texts"]["wikitext2"]["tokens"] = 10
        other = made(
            "other",
            teacher=FULL["teacher"] | {"name": "big", "fingerprint": "def"},
            results=results,
            speed=SPEED | {"machine": "elsewhere"},
        )
        notes = " ".join(write_comparison([*folders, other], tmp_path / "c.html")["notes"])
        assert "Different originals (small, big)" in notes
        assert "wikitext2 was measured on different numbers of tokens" in notes and "books-evaluation was" not in notes
        assert "a test bench, elsewhere" in notes

    def test_folders_of_one_name_are_told_apart(self, made, tmp_path):
        (tmp_path / "b").mkdir()
        folders = [made("run"), made("b/run")]
        names = [row["name"] for row in write_comparison(folders, tmp_path / "c.html")["rows"]]
        assert names == [str(folder) for folder in folders]

    def test_a_run_without_results(self, folders, made, tmp_path):
        with pytest.raises(UsageError, match="no measured result"):
            write_comparison([folders[0], made("bare", without=["results"])], tmp_path / "c.html")
