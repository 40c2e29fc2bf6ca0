"""The formats of common model families, whose own templates mark no answers.

None needs a template with marks of ours: what follows the conversation rendered up to the answer is the answer, which
is also what TRL's DPO trains on. The expected texts of `chat_formats.json` come from the families' own templates
(recorded by `record_chat_formats.py`); those below it are written by hand from the formats' descriptions. The templates
here are ours, and render the same texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_dpo_trainer import chat, errors, rows

DATA = json.loads((Path(__file__).parents[1] / "data" / "chat_formats.json").read_text())
QUESTION, EARLIER = (
    {"role": "user", "content": "Which one?"},
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hm."},
    ],
)
ANSWER = {"role": "assistant", "content": "This one."}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in talk %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ lead if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES = {
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "qwen2_5": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML
    ),
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% set lead, talk = '', messages %}" + GEMMA_TURNS
    ),
    "gemma3": (
        "{% if messages[0].role == 'system' %}{% set lead, talk = messages[0].content + '\n\n', messages[1:] %}"
        "{% else %}{% set lead, talk = '', messages %}{% endif %}" + GEMMA_TURNS
    ),
}
BY_HAND: dict[str, tuple[str, str, str]] = {
    "chatml": (
        CHATML,
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHm.<|im_end|>\n<|im_start|>user\nWhich one?"
        "<|im_end|>\n<|im_start|>assistant\nThis one.<|im_end|>\n",
        "This one.<|im_end|>\n",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] Hello[/INST] Hm.</s>[INST] Which one?[/INST] This one.</s>",
        " This one.</s>",
    ),
    "olmo2": (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' if not loop.last or m.role == 'user' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<s><|user|>\nHello\n<|assistant|>\nHm.</s>\n<|user|>\nWhich one?\n<|assistant|>\nThis one.</s>",
        "This one.</s>",
    ),
}
RECORDED = [(family, name) for family, found in DATA["families"].items() for name in found]


def tokenizer(template: str, bos: str) -> chat.ChatTokenizer:
    """One token a byte, so that ids decode to exactly the text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return chat.ChatTokenizer(backend, template, {"bos_token": bos, "eos_token": "</s>"})


def rendered(template: str, messages: list[dict[str, Any]], bos: str = "<s>") -> tuple[str, str]:
    """The text that a transcript becomes, and the part of it that the loss counts."""
    one = tokenizer(template, bos)
    prompt, answer = tuple(messages[:-1]), messages[-1]
    other = answer | {"content": "Another."}
    ((side, _),) = one.encode([rows.ChatPair("rows.jsonl:1", prompt, (answer,), (other,))])
    return one.backend.decode(side.ids.tolist()), one.backend.decode(side.ids[side.mask].tolist())


@pytest.mark.parametrize(("family", "name"), RECORDED)
def test_a_familys_answer_is_found_without_marks(family: str, name: str) -> None:
    expected = DATA["families"][family][name]
    bos = "<bos>" if family.startswith("gemma") else "<|begin_of_text|>"
    if "error" in expected:
        with pytest.raises(errors.ConfigError, match=expected["error"]):
            rendered(TEMPLATES[family], DATA["conversations"][name], bos)
        return
    assert rendered(TEMPLATES[family], DATA["conversations"][name], bos) == (expected["text"], expected["answer"])


@pytest.mark.parametrize(("family", "name"), RECORDED)
def test_what_trls_training_templates_mark_is_that_answer(family: str, name: str) -> None:
    expected = DATA["families"][family][name]
    marked = expected.get("marked")
    # Qwen 2.5's marks there begin one newline early, which every answer has in common.
    assert marked is None or marked.removeprefix("\n") == expected["answer"]


@pytest.mark.parametrize("family", list(BY_HAND))
def test_other_formats_answers_are_found_too(family: str) -> None:
    template, text, answer = BY_HAND[family]
    assert rendered(template, [*EARLIER, QUESTION, ANSWER]) == (text, answer)


@pytest.mark.parametrize("family", [*TEMPLATES, *BY_HAND])
def test_marks_around_the_answer_give_the_same_tokens(family: str) -> None:
    template = TEMPLATES[family] if family in TEMPLATES else BY_HAND[family][0]
    messages = [QUESTION, ANSWER]
    text, answer = rendered(template, messages)
    begin = text.index(answer)
    marked = "{{ before }}{% generation %}{{ answer }}{% endgeneration %}"
    one = tokenizer(marked, "<s>")
    pair = rows.ChatPair("r:1", (QUESTION,), (ANSWER,), (ANSWER,), {"before": text[:begin], "answer": answer})
    ((side, _),) = one.encode([pair])
    assert one.backend.decode(side.ids[side.mask].tolist()) == answer


def test_qwen3_is_refused_where_it_rewrites_an_earlier_answer() -> None:
    one = tokenizer(TEMPLATES["qwen3"], "<s>")
    longer = (ANSWER, QUESTION, ANSWER)
    pair = rows.ChatPair("rows.jsonl:4", (QUESTION,), longer, (ANSWER | {"content": "No."}, QUESTION, ANSWER))
    with pytest.raises(errors.ConfigError, match=r"rewrites earlier turns .*rows\.jsonl:4") as caught:
        one.encode([pair])
    assert "{% generation %}" in (caught.value.hint or "")
