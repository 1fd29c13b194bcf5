def lora_parameters(d_in, d_out, rank):
    return rank * (d_in + d_out)


def model_lora_parameters(config, targets, rank):
    hidden, ffn = config["hidden"], config["ffn"]
    queries = config["heads"] * config["head_dim"]
    keys = config["kv_heads"] * config["head_dim"]
    shapes = {
        "q": (hidden, queries),
        "k": (hidden, keys),
        "v": (hidden, keys),
        "o": (queries, hidden),
        "gate": (hidden, ffn),
        "up": (hidden, ffn),
        "down": (ffn, hidden),
    }
    unknown = set(targets) - set(shapes)
    if unknown:
        raise ValueError(f"{sorted(unknown)}: no such projection; there are {list(shapes)}")
    return config["layers"] * sum(lora_parameters(*shapes[name], rank) for name in targets)
