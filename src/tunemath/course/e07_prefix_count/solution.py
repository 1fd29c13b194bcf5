def prefix_parameters(config, length):
    return 2 * config["layers"] * length * config["kv_heads"] * config["head_dim"]


def cache_bytes(config, length, tokens, batch, width):
    if length + tokens < 1 or batch < 1:
        raise ValueError("there is no token to cache")
    return batch * prefix_parameters(config, length + tokens) * width
