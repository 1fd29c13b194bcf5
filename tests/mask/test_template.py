from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError

from tunemath.errors import DataError, ModelError
from tunemath.mask.rows import Message
from tunemath.mask.sandbox import sandbox
from tunemath.mask.template import PLAIN, Template

TALK = [
    Message("system", "Be brief."),
    Message("user", " What is 2 + 2? <b>&\n"),
    Message("assistant", "Vier – ja\n"),
    Message("user", "Danke “schön” 日本"),
]
CASES = ["chatml", "default-system", "llama3", "mistral", "dated", "thinking", "extras"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


def as_dicts(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("turns", [2, 3, 4])
@pytest.mark.parametrize("with_system", [True, False])
def test_equals_transformers_byte_for_byte(model_folder, templates, name, turns, with_system):
    from transformers import PreTrainedTokenizerFast

    folder = model_folder(templates[name], eos="</s>")
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    template = Template.load(folder)
    messages = TALK[0 if with_system else 1 : turns]
    if not messages:
        pytest.skip("no messages")
    for generation, ours in ((True, template.prompt), (False, template.full)):
        expected = oracle.apply_chat_template(
            as_dicts(messages), tokenize=False, add_generation_prompt=generation
        )
        assert ours(messages) == expected


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    name=st.sampled_from(CASES),
)
def test_equals_transformers_on_any_text(templates, contents, name):
    from transformers.utils.chat_template_utils import render_jinja_template

    roles = ["user", "assistant"] * 3
    messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    template = Template(templates[name], SPECIAL)
    rendered, _ = render_jinja_template(
        [as_dicts(messages)], chat_template=templates[name], add_generation_prompt=True, **SPECIAL
    )
    assert template.prompt(messages) == rendered[0]


def test_clock_can_be_stopped(templates):
    template = Template(templates["dated"]).at(datetime(1999, 1, 1))
    assert "Today is the day 1999" in template.full(TALK)


@pytest.mark.parametrize(
    "written",
    [
        {"chat_template.json": {"chat_template": "J"}},
        {"tokenizer_config.json": {"chat_template": "J"}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tool_use", "template": "T"},
                    {"name": "default", "template": "J"},
                ]
            }
        },
    ],
)
def test_where_a_template_is_found(tmp_path, written):
    for name, values in written.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert Template.load(tmp_path).full(TALK) == "J"
    (tmp_path / "chat_template.jinja").write_text("file first")
    assert Template.load(tmp_path).full(TALK) == "file first"


def test_special_tokens_may_be_written_as_objects_or_in_the_older_file(tmp_path):
    config = {"bos_token": {"__type": "AddedToken", "content": "<B>"}, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<E>"}))
    assert Template.load(tmp_path).variables == {"bos_token": "<B>", "eos_token": "<E>"}


def test_without_a_template_contents_are_joined_and_answers_ended(model_folder):
    template = Template.load(model_folder(None, eos="</s>"))
    assert template.plain
    assert template.source == PLAIN
    assert template.prompt(TALK[:2]) == "Be brief.\n What is 2 + 2? <b>&\n\n"
    assert template.full(TALK[1:3]) == " What is 2 + 2? <b>&\n\nVier – ja\n</s>"
    assert template.prompt(TALK).startswith(template.full(TALK[:3]))


def test_plain_text_begins_with_bos_once_where_the_tokenizer_adds_it(model_folder):
    template = Template.load(model_folder(None, eos="</s>", adds_bos=True))
    assert template.prompt([Message("user", "Hi")]) == "<s>Hi\n"


def test_a_refusal_of_the_template_is_one_line(templates):
    template = Template(templates["mistral"], SPECIAL)
    with pytest.raises(DataError, match=r"refuses a conversation of assistant: Conversation roles"):
        template.prompt([Message("assistant", "Hi")])


@pytest.mark.parametrize("source", ["{{ messages[0].content + 1 }}", "{{ nothing.at.all }}"])
def test_a_template_that_breaks_is_a_data_error(source):
    with pytest.raises(DataError, match="refuses a conversation of user"):
        Template(source).prompt([Message("user", "Hi")])


def test_a_template_that_is_not_jinja_is_a_model_error():
    with pytest.raises(ModelError, match="not valid Jinja"):
        Template("{% for %}").prompt([Message("user", "Hi")])


def test_named_templates_without_a_default_are_refused(tmp_path):
    config = {"chat_template": [{"name": "rag", "template": "x"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="chat templates rag, none called default"):
        Template.load(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ raise_exception.__globals__.json }}",
    ],
)
def test_templates_run_in_a_sandbox(source):
    with pytest.raises(SecurityError):
        sandbox(datetime.now).from_string(source).render(messages=[])
    with pytest.raises(DataError):
        Template(source).full(TALK)
