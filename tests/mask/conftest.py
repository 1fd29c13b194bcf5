from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from tunemath.mask import Template, Tokenizer, load_tokenizer

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

CHATML_DEFAULT_SYSTEM = (
    """{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a very helpful machine<|im_end|>
' }}{% endif %}"""
    + CHATML
)

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

DATED = (
    "{{ '<|im_start|>system\nToday is the day ' + strftime_now('%Y') + '<|im_end|>\n' }}" + CHATML
)

THINKING = """{%- for message in messages %}
{%- if message.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

EXTRAS = """{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if ns.count > 4 %}{%- break %}{%- endif %}
    {%- set shown = dict(role=message.role, text=message.content) %}
    {{- '<|im_start|>' + (shown | tojson) + '<|im_end|>' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{% endgeneration %}
    {%- endif %}
    {%- if tools is none and documents is none %}.{% endif %}
{%- endfor %}
{% if add_generation_prompt %}
  indented line
{% endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "default-system": CHATML_DEFAULT_SYSTEM,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "dated": DATED,
    "thinking": THINKING,
    "extras": EXTRAS,
}

SPECIALS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
]

CORPUS = [
    "system user assistant what is the date today the capital of France is Paris",
    "write the date 2024-03-01 as an ISO date please and answer yes or no\n\n",
    "one two three four five six seven eight nine ten the quick brown fox",
]

ModelFolder = Callable[..., Path]


NEWLINES_TOGETHER = r"'s|'t| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(pattern: str | None) -> Backend:
    tokenizer = Backend(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>")])
    return tokenizer


def _metaspace() -> Backend:
    tokenizer = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


KINDS = {
    "byte-level": lambda: _byte_level(NEWLINES_TOGETHER),
    "gpt2": lambda: _byte_level(None),
    "metaspace": _metaspace,
}


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    return TEMPLATES


@pytest.fixture
def model_folder(tmp_path: Path) -> ModelFolder:
    """Write a model folder with a tiny tokenizer; pad is eos unless said otherwise."""

    def write(
        template: str | None = CHATML,
        *,
        kind: str = "byte-level",
        eos: str = "<|im_end|>",
        pad: str | None = None,
        adds_bos: bool = False,
        generation: dict[str, object] | None = None,
    ) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        tokenizer = KINDS[kind]()
        if adds_bos:
            bos = ("<s>", tokenizer.token_to_id("<s>"))
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[bos]
            )
        tokenizer.enable_truncation(8)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": eos, "pad_token": pad or eos}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return write


Model = Callable[..., tuple[Template, Tokenizer]]


@pytest.fixture
def model(model_folder: ModelFolder, templates: dict[str, str]) -> Model:
    """Load a template by its name (or None) and a tiny tokenizer."""

    def load(name: str | None = "chatml", **options: object) -> tuple[Template, Tokenizer]:
        folder = model_folder(templates[name] if name else None, **options)
        return Template.load(folder), load_tokenizer(folder)

    return load
