"""The bundled suite of tasks: all kinds of questions on the bundled texts, as files that lm-eval itself reads.

``lm_eval --include_path FOLDER --tasks jettison_suite`` runs the suite without Jettison and without the network.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jettison.core.caches import temporary_folder
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import sync_folder
from jettison.domains.text.tasks import kinds
from jettison.domains.text.tasks.items import Kind, Text, make_items

VERSION = 1  # raise it when the items for the same text change
ITEMS = 1000  # of a task, at most
SUITE = "jettison_suite"
TEXTS = {"books": "books-evaluation", "wikitext": "wikitext2"}


@dataclass(frozen=True)
class Row:
    """A kind of question.

    asks: what is asked, as a sentence.
    choices: how many.
    unconditional: whether a choice is scored by how much the context raises its probability. Choices that share no
        words differ too much in their probability without the context.
    """

    make: Kind
    asks: str
    choices: int
    unconditional: bool = False

    @property
    def random(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.choices

    @property
    def metric(self) -> str:
        """The name of the metric in lm-eval."""
        return "acc_mutual_info" if self.unconditional else "acc"


KINDS = {
    "last_word": Row(kinds.last_word, "Which of four words ends the sentence?", 4),
    "next_sentence": Row(kinds.next_sentence, "Which of four sentences comes next?", 4, unconditional=True),
    "sentence_order": Row(kinds.sentence_order, "Two sentences: as they stand, or exchanged?", 2),
    "word_order": Row(kinds.word_order, "Two words around a small one: as they stand, or exchanged?", 2),
    "intruder": Row(kinds.intruder, "A word, or another about as frequent in its place?", 2),
    "recall": Row(kinds.recall, "Which of four words, one of which was said before, comes next?", 4),
    "agreement": Row(kinds.agreement, "Was or were, is or are, has or have, this or these?", 2),
    "pronoun": Row(kinds.pronoun, "He or she, his or her, it or they, its or their?", 2),
    "preposition": Row(kinds.preposition, "Which of the text's four commonest prepositions but of and to?", 4),
    "punctuation": Row(kinds.punctuation, "A comma, or the end of the sentence?", 2),
    "quotation": Row(kinds.quotation, "Does the quotation close here, or go on?", 2),
}
TASKS = {f"jettison_{text}_{kind}": row for text in TEXTS for kind, row in KINDS.items()}
GROUPS = {f"jettison_{text}": [f"jettison_{text}_{kind}" for kind in KINDS] for text in TEXTS}
NAMES = (SUITE, *GROUPS, *TASKS)


@cache
def items_of(task: str) -> list[dict[str, Any]]:
    """Return the items of a task of the suite: 1,000, or fewer if its text offers fewer."""
    text = _text(task.split("_")[1])
    return make_items(TASKS[task].make, text, ITEMS)


@cache
def _text(name: str) -> Text:
    return Text.read(TEXTS[name])


@cache
def suite_folder() -> Path:
    """Return a temporary folder with the suite. It is written at the first call and deleted when this process ends.

    It is not kept because a kept folder could be damaged, and `datasets` would not notice.
    Raises JettisonError if the folder cannot be written.
    """
    try:
        folder = temporary_folder("jettison-suite-")
    except OSError as error:
        raise JettisonError(f"the tasks need a temporary folder: {error}. $TMPDIR names one") from error
    return write_suite(folder / SUITE)


def write_suite(folder: str | Path) -> Path:
    """Write every task's items (JSON lines) and configuration, and the groups (YAML), to a new folder.

    The configurations name their items by absolute path. The files that `datasets` makes of them are stored beside
    them, so that no stale file from elsewhere is read. The folder is written under another name and then renamed, so it
    is whole or absent.
    Returns the folder. Raises UsageError if it exists, JettisonError if it cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise UsageError(f"{folder} exists already: name a new folder for the tasks")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        for task, row in TASKS.items():
            lines = [json.dumps(item, ensure_ascii=False) for item in items_of(task)]
            (temporary / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            _write_yaml(temporary / f"{task}.yaml", _task(task, row, folder))
        for group, members in {**GROUPS, SUITE: list(GROUPS)}.items():
            _write_yaml(temporary / f"{group}.yaml", {"group": group, "task": members} | _metadata())
        temporary.chmod(0o755)  # only their owner can read temporary folders
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise JettisonError(f"cannot write the tasks to {folder}: {error}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _task(task: str, row: Row, folder: Path) -> dict[str, Any]:
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / f"{task}.jsonl")},
            "cache_dir": str(folder / "datasets"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",  # every choice begins with its own space
        "num_fewshot": 0,
        "metric_list": [{"metric": row.metric, "aggregation": "mean", "higher_is_better": True}],
    } | _metadata(asks=row.asks, random_baseline=round(row.random, 4), items=len(items_of(task)))


def _metadata(**more: Any) -> dict[str, Any]:
    return {"metadata": {"version": VERSION, **more}}


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, width=1000), encoding="utf-8", newline="\n")
