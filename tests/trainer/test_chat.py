from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_dpo_api.config_file import PreferenceChatFormat, UrlSource
from lora_dpo_trainer import chat, errors, rows, sources

MARKS = ("{% generation %}", "{% endgeneration %}")


@pytest.fixture
def files(base_model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in base_model.iterdir() if path.name in chat.TOKENIZER_FILES}


@pytest.fixture
def pairs(preference_file: Path) -> list[rows.ChatPair]:
    (file,) = sources.list_files("prefs", UrlSource(train_urls=[str(preference_file)]))
    parsed = [rows.parse(row, PreferenceChatFormat(), keep_equal=True) for row in sources.read(file)]
    return [pair for pair in parsed if isinstance(pair, rows.ChatPair)]


def without_marks(files: dict[str, bytes]) -> str:
    template = files["chat_template.jinja"].decode()
    for mark in MARKS:
        assert mark in template
        template = template.replace(mark, "")
    return template


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_ids_and_masks_are_those_of_trl(
    marked: bool, files: dict[str, bytes], pairs: list[rows.ChatPair], preference_file: Path
) -> None:
    tokenizer = chat.load(files, where="here", template=None if marked else without_marks(files))
    expected = json.loads((preference_file.parent / "tokens.json").read_text())
    encoded = tokenizer.encode(pairs)
    assert len(encoded) == len(expected) == 96
    for sides, row in zip(encoded, expected, strict=True):
        for side, name in zip(sides, ("chosen", "rejected"), strict=True):
            np.testing.assert_array_equal(side.ids, row[name]["input_ids"])
            np.testing.assert_array_equal(side.mask, np.array(row[name]["loss_mask"], bool))


def pair(*prompt: tuple[str, str], chosen: str = "this", rejected: str = "that") -> rows.ChatPair:
    messages = tuple({"role": role, "content": content} for role, content in prompt)
    answers = tuple(({"role": "assistant", "content": content},) for content in (chosen, rejected))
    return rows.ChatPair("rows.jsonl:1", messages, *answers)


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_an_assistant_turn_in_the_prompt_does_not_count(marked: bool, files: dict[str, bytes]) -> None:
    tokenizer = chat.load(files, where="here", template=None if marked else without_marks(files))
    long = pair(("user", "a"), ("assistant", "bcd"), ("user", "e"))
    short = pair(("user", "a"))
    ((chosen, _),) = tokenizer.encode([long])
    ((alone, _),) = tokenizer.encode([short])
    assert chosen.mask.sum() == alone.mask.sum()
    assert not chosen.mask[: -int(chosen.mask.sum())].any()


def test_without_masking_everything_after_the_prompt_counts(files: dict[str, bytes]) -> None:
    tokenizer = chat.load(files, where="here", mask_user_turns=False)
    ((chosen, _),) = tokenizer.encode([pair(("user", "a"))])
    assert chosen.mask.any()
    assert not chosen.mask[0]


def test_the_digest_changes_with_the_template(files: dict[str, bytes]) -> None:
    first, same, other = (
        chat.load(files, where="here", template=template).digest for template in (None, None, without_marks(files))
    )
    assert first == same != other


def test_no_tokenizer_and_no_template_are_configuration_errors(files: dict[str, bytes]) -> None:
    with pytest.raises(errors.ConfigError, match=r"no tokenizer\.json in gs://x"):
        chat.load({}, where="gs://x")
    bare = {"tokenizer.json": files["tokenizer.json"]}
    with pytest.raises(errors.ConfigError, match="no chat template") as caught:
        chat.load(bare, where="gs://x")
    assert caught.value.hint is not None
    assert "chat_template" in caught.value.hint


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for call in messages[0]['content']|length %}{% endfor %}", "'int' object is not iterable"),
        ("{{ messages[0].tools.name }}", "has no attribute 'tools'"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_a_template_that_fails_is_a_configuration_error(files: dict[str, bytes], template: str, fault: str) -> None:
    tokenizer = chat.load(files, where="here", template=template)
    with pytest.raises(errors.ConfigError, match=rf"^The chat template fails at rows\.jsonl:1: .*{fault}"):
        tokenizer.encode([pair(("user", "a"))])


def test_a_template_that_rewrites_earlier_turns_asks_for_marks(files: dict[str, bytes]) -> None:
    rewriting = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    tokenizer = chat.load(files, where="here", template=rewriting)
    with pytest.raises(errors.ConfigError, match="rewrites earlier turns"):
        tokenizer.encode([pair(("user", "a"))])


def test_a_named_template_list_gives_its_default(files: dict[str, bytes]) -> None:
    config = json.loads(files["tokenizer_config.json"])
    config["chat_template"] = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": files["chat_template.jinja"].decode()},
    ]
    without = {name: content for name, content in files.items() if name != "chat_template.jinja"}
    tokenizer = chat.load(without | {"tokenizer_config.json": json.dumps(config).encode()}, where="here")
    assert tokenizer.template == files["chat_template.jinja"].decode()
