"""A tiny seeded model, and LoRA adapters of it that PEFT saved."""

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model


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
