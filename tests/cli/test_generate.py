"""The command ``generate``: chats of several turns, with a system prompt."""

import json
import shutil

import pytest

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatting(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_every_prompt_is_a_turn_of_one_chat(chatting, tmp_path, jettison, monkeypatch):
    """Each turn reads the system prompt, all earlier prompts and all earlier answers."""
    from jettison.runtime.load import Loaded

    seen, stream = [], Loaded.stream
    read = lambda self, prompt, **options: (
        seen.append([dict(part) for part in prompt]) or stream(self, prompt, **options)
    )
    monkeypatch.setattr(Loaded, "stream", read)
    turns = ["-p", "Hello", "-p", "Why"]
    file = tmp_path / "out.json"
    code, out, err = jettison("generate", chatting, "--chat", "--system", "Be brief", *turns, "-n", 3, "--json", file)
    assert code == 0, err
    result = json.loads(file.read_text())
    roles = [message["role"] for message in result["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in result["messages"]][:2] == ["Be brief", "Hello"]
    assert [len(messages) for messages in seen] == [2, 4] and seen[1] == result["messages"][:4]
    assert result["text"] == result["messages"][-1]["content"] and "> Hello" in out and "> Why" in out


@pytest.mark.parametrize("wrong", [["--system", "Be brief"], ["-p", "a", "-p", "b"]])
def test_only_a_chat_has_several_messages(wrong, chatting, jettison):
    code, _, err = jettison("generate", chatting, *wrong, "-n", 1)
    assert code == 2 and "add --chat" in " ".join(err.split())
