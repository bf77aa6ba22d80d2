"""The tasks of the suite.

- Their items, and the files that lm-eval reads.
- Accuracies against sums that the test computes itself.
- The comparison of original, compressed and recovered: the part of the loss that is recovered.
"""

import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from jettison.cli.app import main
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import digest
from jettison.domains.text.data import read_documents
from jettison.domains.text.tasks import items, suite
from jettison.pipeline.compression import compress
from jettison.pipeline.recovery import recover
from jettison.pipeline.tasks import compare_tasks, evaluate_tasks
from jettison.runtime.load import load

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "tasks.md"
STEPS = {
    "steps": [
        {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}},
        {"recover": {"train": ["lora"], "samples": 8, "length": 32, "batch": 4, "rank": 4, "lr": 0.05}},
    ]
}


def squeezed(text: str) -> str:
    """Return the text without spaces, and without the @ that WikiText sets around marks within words."""
    return re.sub(r"\s", "", re.sub(r" @([-,.])@ ", r"\1", text))


@pytest.fixture(scope="module")
def texts():
    return {name: squeezed(" ".join(read_documents(source))) for name, source in suite.TEXTS.items()}


class TestItems:
    @pytest.mark.parametrize("task", suite.TASKS)
    def test_well_formed_balanced_and_true(self, task, texts):
        task_items, row = suite.items_of(task), suite.TASKS[task]
        assert len({item["context"] for item in task_items}) == len(task_items)
        places = Counter(item["answer"] for item in task_items)
        assert set(places) == set(range(row.choices)) and max(places.values()) - min(places.values()) <= 1
        for item in task_items:
            assert len(set(item["choices"])) == len(item["choices"]) == row.choices
            assert all(re.match(r" \S", choice) for choice in item["choices"])
            assert items.FEWEST <= len(item["context"].split()) <= 40
            assert squeezed(item["context"] + item["choices"][item["answer"]]) in texts[task.split("_")[1]]

    def test_how_many(self):
        """The page docs/tasks.md states the counts; the books give at least 900 items of at least 8 kinds."""
        counts = {
            kind: [len(suite.items_of(f"jettison_{text}_{kind}")) for text in suite.TEXTS] for kind in suite.KINDS
        }
        assert sum(books >= 900 for books, _ in counts.values()) >= 8
        page = DOCS.read_text(encoding="utf-8")
        for kind, row in suite.KINDS.items():
            random = f"{row.random:.2f}"
            assert (
                f"| `{kind}` | {row.asks} | {row.choices} | {random} | {counts[kind][0]} | {counts[kind][1]} |" in page
            )

    @pytest.mark.parametrize("kind", ["agreement", "pronoun", "preposition", "punctuation", "quotation"])
    @pytest.mark.parametrize("text", suite.TEXTS)
    def test_each_form_is_right_equally_often(self, kind, text):
        task_items = suite.items_of(f"jettison_{text}_{kind}")
        right_counts, wrong_counts = Counter(), Counter()
        for item in task_items:
            for number, choice in enumerate(item["choices"]):
                if kind in ("punctuation", "quotation"):
                    form = "." in choice if kind == "punctuation" else '"' in choice
                else:
                    form = choice.split()[0]
                (right_counts if number == item["answer"] else wrong_counts)[form] += 1
        if kind == "pronoun":  # her is the counterpart of both him and his, so only these sums are balanced
            assert right_counts["he"] == right_counts["she"] and right_counts["its"] == right_counts["their"]
            assert right_counts["her"] == right_counts["his"] + right_counts["him"]
        else:
            wrong_choices = len(task_items[0]["choices"]) - 1
            assert {form: wrong_choices * count for form, count in right_counts.items()} == wrong_counts

    def test_same_seed_same_items(self):
        """The digest holds in every process, so no item depends on the order of a set.

        A change of the items needs a new VERSION.
        """
        task_items = [suite.items_of(task) for task in suite.TASKS]
        assert (suite.VERSION, digest(task_items)) == (1, "73376dd97212e03b")
        text = items.Text.read("wikitext2")
        again, other = (items.make_items(suite.KINDS["intruder"].make, text, 1000, seed) for seed in (0, 1))
        assert suite.items_of("jettison_wikitext_intruder") == again != other

    def test_wikitext_is_put_together(self):
        assert items._join_marks('a @-@ b 1 @,@ 000 , " so " ( it \'s ) .') == 'a-b 1,000, "so" (it\'s).'
        assert items._join_marks('" So , he said ." ') == '" So , he said ." '


class TestFiles:
    def test_lm_eval_finds_them(self):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(suite.suite_folder()), include_defaults=False)
        assert sorted(manager.all_tasks) == sorted(suite.NAMES)
        loaded = manager.load([suite.SUITE])["tasks"]
        assert sorted(loaded) == sorted(suite.TASKS)
        task = "jettison_wikitext_agreement"
        assert list(loaded[task].eval_docs) == suite.items_of(task)
        assert loaded[task].config.metadata["random_baseline"] == 0.5
        assert not list(suite.suite_folder().parent.glob("*.tmp"))

    def test_whole_or_absent(self, tmp_path, monkeypatch):
        def dying(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(suite, "_write_yaml", dying)
        with pytest.raises(KeyboardInterrupt):
            suite.write_suite(tmp_path / "suite")
        assert not list(tmp_path.iterdir())

    def test_every_process_has_files_of_its_own(self):
        """No damaged or outdated file is read; the files are removed when the process ends."""
        code = (
            "from jettison.domains.text.tasks import suite\n"
            "a, b = suite.suite_folder(), suite.suite_folder()\n"
            "print(a, a == b)"
        )
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        folder, same = process.stdout.split()
        assert same == "True" and not Path(folder).parent.exists() and Path(folder) != suite.suite_folder()

    def test_a_folder_that_is_there(self, tmp_path):
        with pytest.raises(UsageError, match="exists already"):
            suite.write_suite(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(JettisonError, match="cannot write the tasks"):
            suite.write_suite(tmp_path / "file" / "suite")


def answers(model, task: str, count: int, adapter: bool = True) -> str:
    """Return the scores of the first ``count`` items, from log likelihoods summed here, one sequence at a time."""
    loaded = load(model, adapter=adapter)

    def likelihood(context: str, choice: str) -> float:
        start = loaded.tokenizer(context).input_ids or [loaded.tokenizer.bos_token_id]
        ids = torch.tensor(start + loaded.tokenizer(choice).input_ids)
        guess = loaded.logits(ids[None])[0].float().log_softmax(-1)
        return float(sum(guess[place - 1, ids[place]] for place in range(len(start), len(ids))))

    scores = []
    for item in suite.items_of(task)[:count]:
        sums = [likelihood(item["context"], choice) for choice in item["choices"]]
        if suite.TASKS[task].unconditional:
            sums = [total - likelihood("", choice) for total, choice in zip(sums, item["choices"], strict=True)]
        scores.append(sums.index(max(sums)) == item["answer"])
    return " ".join(str(int(score)) for score in scores)


class TestModels:
    @pytest.fixture(scope="class")
    def compressed(self, tiny, made_once):
        return made_once("tasks", lambda folder: (compress(tiny("llama"), STEPS, folder), recover(folder)))

    def test_scribe_knows_and_a_random_model_guesses(self, tiny):
        results = evaluate_tasks("scribe", ["jettison_books"], items=24)
        above = [row["accuracy"] - row["random"] - 2 * row["standard_error"] for row in results.values()]
        assert sum(margin > 0 for margin in above) >= 9
        guessed = evaluate_tasks(tiny("llama"), ["jettison_books"], items=24)
        assert statistics.mean(row["accuracy"] - row["random"] for row in guessed.values()) == pytest.approx(
            0, abs=0.07
        )

    @pytest.mark.parametrize("task", ["jettison_books_agreement", "jettison_books_next_sentence"])
    def test_accuracies_are_our_own_sums(self, task):
        measured = evaluate_tasks("scribe", [task], items=12)[task]
        assert measured["scores"] == answers("scribe", task, 12)
        scores = [int(score) for score in measured["scores"].split()]
        assert measured["accuracy"] == pytest.approx(statistics.mean(scores), abs=1e-6)
        assert measured["standard_error"] == pytest.approx(statistics.stdev(scores) / len(scores) ** 0.5, abs=1e-6)
        assert measured["items"] == 12

    def test_packed_weights_and_the_adapter_take_part(self, compressed):
        task, scores = "jettison_books_preposition", []
        for adapter in (True, False):
            measured = evaluate_tasks(compressed, [task], items=24, adapter=adapter)[task]
            scores.append(measured["scores"])
            assert measured["scores"] == answers(compressed, task, 24, adapter)
        assert scores[0] != scores[1]

    def test_names_that_are_none(self):
        with pytest.raises(UsageError, match="unknown task 'jettison_book'.*did you mean 'jettison_books'"):
            evaluate_tasks("scribe", ["jettison_book"])
        with pytest.raises(UsageError, match="no task"):
            evaluate_tasks("scribe", [])
        with pytest.raises(UsageError, match="items = 1"):
            evaluate_tasks("scribe", items=1)

    @pytest.mark.slow
    def test_names_that_lm_eval_does_not_know(self):
        with pytest.raises(UsageError, match="unknown task 'hellaswg'; close to it: hellaswag"):
            evaluate_tasks("scribe", ["hellaswg"])

    def test_no_network(self, monkeypatch):
        import lm_eval

        def failing(*_, **__):
            raise ConnectionError("Couldn't reach the Hub\nand more")

        monkeypatch.setattr(lm_eval, "simple_evaluate", failing)
        with pytest.raises(JettisonError, match=r"cannot be had: Couldn't reach the Hub\. Tasks of lm-eval fetch"):
            evaluate_tasks("scribe", ["jettison_books_recall"])


def result(*scores: str) -> dict[str, dict[str, str]]:
    """Return evaluation results of tasks task0, task1, ... with these scores."""
    return {f"task{number}": {"scores": task_scores} for number, task_scores in enumerate(scores)}


class TestCompare:
    def test_by_hand(self):
        rows = compare_tasks(result("1 1 1 1 1 1 1 1"), result("0 0 0 0 1 1 1 1"), result("1 1 0 0 1 1 1 1"))
        (row,) = rows
        assert (row["task"], row["lost"], row["recovered"], row["counts"]) == ("task0", 0.5, 0.5, True)
        assert row["lost_error"] == pytest.approx(statistics.stdev([1, 1, 1, 1, 0, 0, 0, 0]) / 8**0.5, abs=1e-6)
        spread = statistics.stdev([0.5, 0.5, -0.5, -0.5, 0, 0, 0, 0])
        assert row["recovered_error"] == pytest.approx(spread / 8**0.5 / 0.5, abs=1e-6)

    def test_no_loss_is_no_share(self):
        (row,) = compare_tasks(result("1 0 1"), result("1 0 1"), result("1 1 1"))
        assert (row["lost"], row["recovered"], row["recovered_error"], row["counts"]) == (0, None, None, False)
        json.dumps(row, allow_nan=False)

    def test_what_cannot_be_compared(self):
        with pytest.raises(UsageError, match="task0 was not measured on the same items: 3, 3, 2"):
            compare_tasks(result("1 0 1"), result("1 0 1"), result("1 1"))
        with pytest.raises(UsageError, match="no task in common"):
            compare_tasks(result("1 0"), {}, result("1 0"))


def test_command(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not a git repository: a call of git by lm-eval would print an error
    options = ["--text", "wikitext2", "--tokens", "256", "--window", "128", "-q", "--json", str(tmp_path / "e.json")]
    names = ["--tasks", "jettison_wikitext_punctuation", "--tasks", "jettison_books_agreement", "--items", "10"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "scribe", *names, *options])
    assert not ended.value.code
    out, err = capfd.readouterr()
    assert err == ""
    assert re.search(r"WikiText-2 .*\njettison_wikitext_punctuation +\d\.\d+ +± \d\.\d+ +0\.500 +10", out)
    written = json.loads((tmp_path / "e.json").read_text())
    assert set(written["tasks"]) == {"jettison_wikitext_punctuation", "jettison_books_agreement"}
    assert written["texts"]["wikitext2"]["perplexity"] > 1
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "scribe", "--tasks", "jettison_sweet", *options])
    assert ended.value.code == 2 and "jettison_suite" in capfd.readouterr().err
