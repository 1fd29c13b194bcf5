def adapter_parameters(width, bottleneck):
    return 2 * width * bottleneck


def model_adapter_parameters(layers, width, bottleneck, adapters, layer_norm):
    if adapters not in (1, 2):
        raise ValueError(f"{adapters} adapters a layer; there are places for 1 or 2")
    one = adapter_parameters(width, bottleneck) + bottleneck + width
    if layer_norm:
        one += 2 * width
    return layers * adapters * one
