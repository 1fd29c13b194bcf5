"""A tiny seeded model, and LoRA adapters of it that PEFT saved."""

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import tolerance


def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def adapter(path, seed=1, **settings):
    """Save a seeded adapter with none of its parameters at its start."""
    config = LoraConfig(r=8, lora_alpha=12, **settings)
    peft = get_peft_model(model(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    peft.save_pretrained(path, save_embedding_layers=False)
    return path


def assert_same_update(found, expected):
    """Two updates are one but for a float32 decomposition, whose factors are multiplied again."""
    atol = 2 * tolerance.decomposition(expected, torch.float32)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


def assert_nearest(found, matrix, rank):
    """An update is the nearest of its rank to a matrix, as a float32 decomposition gives it."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    error = 2 * tolerance.decomposition(matrix, torch.float32)
    atol = tolerance.cut(matrix, rank, error)
    torch.testing.assert_close(found.double(), best, rtol=0, atol=atol)
    return best


def deltas(path):
    """Return each module's update as PEFT forms it, and everything else that it would load."""
    peft = PeftModel.from_pretrained(model(), str(path))
    found = {
        name: module.get_delta_weight("default").detach()
        for name, module in peft.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    rest = {n: p.detach() for n, p in peft.named_parameters() if "modules_to_save" in n}
    return found, rest
