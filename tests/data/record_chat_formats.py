"""Records what common families' own chat templates make of a few conversations: `chat_formats.json`.

Run with the Python of `scripts/venv bench-trl requirements/bench-trl.txt`. The templates are those that TRL ships, and
stay there: only what they render is kept. `answer` is what follows the conversation rendered up to the answer, with the
generation prompt, by the stock template. `marked` is what TRL's training template of the family marks, where the two
render the same text.
"""

import json
from pathlib import Path

import trl
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

FAMILIES = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen2_5": {},
    "qwen3": {},
    "gemma": {"bos_token": "<bos>"},
    "gemma3": {"bos_token": "<bos>"},
}
QUESTION, ANSWER = {"role": "user", "content": "Which one?"}, {"role": "assistant", "content": "This one."}
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hm."}]
SYSTEM = {"role": "system", "content": "Be kind."}
CONVERSATIONS = {
    "one turn": [QUESTION, ANSWER],
    "two turns": [*EARLIER, QUESTION, ANSWER],
    "system": [SYSTEM, QUESTION, ANSWER],
}


def render(template: str, messages: list, specials: dict, marked: bool, **more: bool) -> tuple[str, list[str]]:
    texts, spans = render_jinja_template(
        [messages], chat_template=template, return_assistant_tokens_mask=marked, **specials, **more
    )
    return texts[0], [texts[0][start:end] for start, end in (spans[0] if marked else [])]


folder = Path(trl.__file__).parent / "chat_templates"
found: dict = {}
for family, specials in FAMILIES.items():
    stock, training = ((folder / f"{family}{suffix}.jinja").read_text() for suffix in ("", "_training"))
    found[family] = {}
    for name, messages in CONVERSATIONS.items():
        try:
            text, _ = render(stock, messages, specials, False)
        except TemplateError as error:
            found[family][name] = {"error": str(error)}
            continue
        prefix, _ = render(stock, messages[:-1], specials, False, add_generation_prompt=True)
        assert text.startswith(prefix), (family, name)
        other, marked = render(training, messages, specials, True)
        same = marked[-1] if other == text else None
        found[family][name] = {"text": text, "answer": text[len(prefix) :], "marked": same}
target = Path(__file__).with_name("chat_formats.json")
content = {"source": f"trl {trl.__version__}", "conversations": CONVERSATIONS, "families": found}
target.write_text(json.dumps(content, indent=1) + "\n")
