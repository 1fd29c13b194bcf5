def lora_parameters(d_in, d_out, rank):
    """Trainable parameters of LoRA on one matrix W (d_out, d_in)."""


def model_lora_parameters(config, targets, rank):
    """Trainable parameters of LoRA on a whole model.

    config: hidden, layers, heads, kv_heads, head_dim, ffn. targets: names among q, k, v, o, gate,
    up, down, which are adapted in every layer. Raises ValueError for any other name.

    q maps hidden to heads · head_dim, k and v to kv_heads · head_dim, o from heads · head_dim back
    to hidden; gate and up map hidden to ffn, down maps ffn to hidden.
    """
