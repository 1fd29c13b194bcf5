"""Extraction beside PEFT, which loads the product, and torch.linalg.svd, which bounds it."""

import json

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import tolerance
from tunemath.errors import ContractError, ModelError
from tunemath.space.weights.extract import extract
from tunemath.space.weights.ranks import RankChoice, share_ranks, truncated

IDS = torch.tensor([[1, 5, 3, 7, 2, 9]])


def llama(tied=False):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def pair(make, tmp_path, only=lambda name: True):
    """Save a seeded model and one whose parameters all moved; return both folders."""
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only(name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    return tmp_path / "base", tmp_path / "tuned", tmp_path / "out"


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def state(folder):
    return load_file(folder / "model.safetensors")


def cut_share(base, tuned, ranks):
    """Return by how much of its norm a matrix's cut may be off, the largest of all."""
    before, after = state(base), state(tuned)
    shares = []
    for name, rank in ranks.items():
        delta = (after[f"{name}.weight"].double() - before[f"{name}.weight"].double()).flatten(1)
        error = tolerance.decomposition(delta, torch.float32)
        shares.append(tolerance.cut(delta, rank, error) / float(torch.linalg.matrix_norm(delta, 2)))
    return max(shares)


def truncate_by_svd(base, tuned, ranks, held, turned=()):
    """Return the base moved by each matrix's truncated difference, and by what is held whole."""
    model, after = loaded(base), dict(loaded(tuned).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rank = ranks.get(name.removesuffix(".weight"))
            if rank is not None and name.endswith(".weight"):
                u, s, v = torch.linalg.svd((after[name] - parameter).double(), full_matrices=False)
                parameter.add_(((u[:, :rank] * s[:rank]) @ v[:rank]).float())
            elif name in held:
                parameter.copy_(after[name])
    return model


@pytest.mark.parametrize(
    ("make", "rest", "embeddings"),
    [
        (llama, "small", False),
        (llama, "none", True),
        (llama, "all", False),
        (lambda: llama(tied=True), "all", False),
        (gpt2, "all", False),
        (gpt2, "small", False),
    ],
)
def test_peft_loads_it_and_gives_the_logits_of_the_truncated_difference(
    tmp_path, make, rest, embeddings
):
    base, tuned, out = pair(make, tmp_path)
    found = extract(base, tuned, out, RankChoice("rank", 3), rest=rest, embeddings=embeddings)
    held = {each.name for each in found.rest if each.held}
    ranks = {cut.name: cut.rank for cut in found.cuts}
    expected = truncate_by_svd(base, tuned, ranks, held)
    peft = PeftModel.from_pretrained(loaded(base), str(out)).eval()
    with torch.no_grad():
        near, far = peft(IDS).logits, loaded(base)(IDS).logits
        assert (near - far).abs().max() > 1e-2
        atol = tolerance.network(near, layers=2, width=64)
        # What moves the logits is itself known as well as a cut of its rank is.
        atol += 4 * cut_share(base, tuned, ranks) * float((near - far).abs().max())
        for given in (near, peft.merge_and_unload()(IDS).logits):
            torch.testing.assert_close(given, expected(IDS).logits, rtol=0, atol=atol)
    if rest == "all":
        assert held == {n for n, _ in loaded(base).named_parameters()} - {
            f"{name}.weight" for name in ranks
        }
    assert found.not_held == pytest.approx(
        0 if rest == "all" else sum(e.norm**2 for e in found.rest if not e.held)
        / (sum(e.norm**2 for e in found.rest) + sum(c.norm**2 for c in found.cuts))
    )  # fmt: skip


def test_each_matrix_is_within_a_thousandth_of_the_least_error(tmp_path):
    base, tuned, out = pair(llama, tmp_path)
    found = extract(base, tuned, out, RankChoice("rank", 4))
    before, after = state(base), state(tuned)
    tensors = load_file(out / "adapter_model.safetensors")
    for cut in found.cuts:
        delta = (after[f"{cut.name}.weight"] - before[f"{cut.name}.weight"]).double()
        s = torch.linalg.svdvals(delta)
        least = float((s[4:] ** 2).sum().sqrt() / (s**2).sum().sqrt())
        key = f"base_model.model.{cut.name}.lora_"
        product = tensors[f"{key}B.weight"].double() @ tensors[f"{key}A.weight"].double()
        error = float((delta - product).norm() / delta.norm())
        assert cut.relative_error == pytest.approx(error, rel=1e-4)
        assert least * 0.9999 <= error <= min(least * 1.001, cut.bound)


def test_a_rank_for_each_matrix_by_energy_error_and_budget(tmp_path):
    base, tuned, out = pair(llama, tmp_path)
    before, after = state(base), state(tuned)
    energy = extract(base, tuned, out, RankChoice("energy", 0.8))
    for cut in energy.cuts:
        delta = after[f"{cut.name}.weight"] - before[f"{cut.name}.weight"]
        s = torch.linalg.svdvals(delta.double()) ** 2
        share = s.cumsum(0) / s.sum()
        assert cut.rank == int((share < 0.8).sum()) + 1
    config = json.loads((out / "adapter_config.json").read_text())
    assert len({cut.rank for cut in energy.cuts}) > 1
    assert config["rank_pattern"]
    peft = PeftModel.from_pretrained(loaded(base), str(out))
    scalings = {module.scaling["default"] for module in peft.modules() if hasattr(module, "lora_A")}
    assert scalings == {1.0}
    (tmp_path / "error").mkdir()
    error = extract(base, tuned, tmp_path / "error", RankChoice("error", 0.3))
    assert all(cut.relative_error <= 0.3 for cut in error.cuts)
    (tmp_path / "budget").mkdir()
    budget = extract(base, tuned, tmp_path / "budget", RankChoice("parameters", 2000))
    tensors = load_file(tmp_path / "budget" / "adapter_model.safetensors")
    size = sum(tensor.numel() for key, tensor in tensors.items() if "lora_" in key)
    assert size == budget.parameters
    assert 1900 < size <= 2000


def test_a_budget_is_shared_as_the_best_of_all_ways():
    generator = torch.Generator().manual_seed(0)
    values = {
        name: sorted(torch.rand(4, generator=generator).tolist(), reverse=True) for name in "abc"
    }
    ranks = share_ranks(values, dict.fromkeys("abc", 7), 7 * 5)
    kept = sum(sum(s**2 for s in values[name][:rank]) for name, rank in ranks.items())
    every = [
        sum(sum(s**2 for s in values[n][:r]) for n, r in zip("abc", (i, j, 5 - i - j), strict=True))
        for i in range(5)
        for j in range(5)
        if 0 <= 5 - i - j <= 4
    ]
    assert kept == pytest.approx(max(every))


def test_a_large_matrix_is_deepened_until_the_energy_is_there():
    torch.manual_seed(0)
    values = 0.97 ** torch.arange(1100.0)
    u, v = (torch.linalg.qr(torch.randn(1100, 1100))[0] for _ in range(2))
    fit = truncated((u * values) @ v, RankChoice("energy", 0.99), None)
    share = (values**2).cumsum(0) / (values**2).sum()
    least = int((share < 0.99).sum()) + 1
    assert least <= len(fit.singular_values) <= least + 1
    assert fit.relative_error <= 0.1


def test_half_precision_says_what_it_lost(tmp_path):
    base, tuned, out = pair(llama, tmp_path)
    found = extract(base, tuned, out, RankChoice("rank", 4), dtype="bfloat16")
    tensors = load_file(out / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert all(0 < cut.rounding < 0.01 for cut in found.cuts)
    assert found.survived == pytest.approx(1, abs=1e-3)


def test_a_convolution_and_its_factors(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=3, num_labels=3,
    )  # fmt: skip
    base, tuned, out = pair(lambda: transformers.ViTForImageClassification(config), tmp_path)
    found = extract(base, tuned, out, RankChoice("rank", 48), rest="all")
    name = "vit.embeddings.patch_embeddings.projection"
    assert name in {cut.name for cut in found.cuts}
    model = transformers.ViTForImageClassification.from_pretrained(base)
    peft = PeftModel.from_pretrained(model, str(out)).eval()
    after = transformers.ViTForImageClassification.from_pretrained(tuned).eval()
    image = torch.rand(1, 3, 8, 8)
    conv = name.removeprefix("vit.")
    got = peft.merge_and_unload().vit.get_submodule(conv).weight
    wanted = after.vit.get_submodule(conv).weight.detach()
    delta = (wanted - state(base)[f"{name}.weight"]).flatten(1)
    atol = 2 * tolerance.decomposition(delta)
    atol += float(tolerance.rounded(wanted, torch.float32).max())
    torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=atol)
    left = {each.name for each in found.rest if not each.held}
    if not left:
        torch.testing.assert_close(peft(image).logits, after(image).logits, rtol=0, atol=1e-5)


def test_what_is_no_pair_is_refused(tmp_path):
    base, _, out = pair(llama, tmp_path)
    with pytest.raises(ModelError, match="differ in no matrix"):
        extract(base, base, out, RankChoice("rank", 4))
    with pytest.raises(ContractError, match=r"--energy 1\.5: expected a number over 0"):
        RankChoice("energy", 1.5)
    with pytest.raises(ContractError, match=r"--rank 0\.5: expected a whole number"):
        RankChoice("rank", 0.5)
    other = tmp_path / "other"
    gpt2().save_pretrained(other)
    with pytest.raises(ModelError, match="no tensor in common"):
        extract(base, other, out, RankChoice("rank", 4))


@pytest.mark.parametrize("fall", [0.0, 0.3, 0.7, 1.5])
@pytest.mark.parametrize(("shape", "rank"), [((256, 640), 4), ((512, 256), 16), ((192, 576), 40)])
def test_passes_over_a_matrix_find_its_best_truncation(shape, rank, fall):
    torch.manual_seed(0)
    values = torch.arange(1.0, min(shape) + 1).double() ** -fall
    u, v = (torch.linalg.qr(torch.randn(n, min(shape)).double())[0] for n in shape)
    fit = truncated(((u * values) @ v.T).float(), RankChoice("rank", rank))
    least = float((values[rank:] ** 2).sum().sqrt() / (values**2).sum().sqrt())
    assert fit.relative_error <= 1.001 * least
    assert fit.relative_error <= fit.bound <= 1.002 * least
