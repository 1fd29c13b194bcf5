def prefix_parameters(config, length):
    """Trainable parameters of a prefix of `length` keys and values in every layer.

    config: layers, heads, kv_heads, head_dim.
    """


def cache_bytes(config, length, tokens, batch, width):
    """Memory of the key-value cache with the prefix in it, in bytes.

    tokens: read in each sequence besides the prefix. batch: how many sequences. width: bytes a
    number. Raises ValueError if there is nothing to cache.
    """
