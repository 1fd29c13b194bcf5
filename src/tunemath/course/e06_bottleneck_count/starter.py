def adapter_parameters(width, bottleneck):
    """Parameters of one adapter h + W_up σ(W_down h), without biases.

    W_down: (bottleneck, width). W_up: (width, bottleneck).
    """


def model_adapter_parameters(layers, width, bottleneck, adapters, layer_norm):
    """Trainable parameters of the adapters of a whole model, biases included.

    adapters: 1 or 2 in each layer; raises ValueError for any other number. layer_norm: whether each
    adapter has a LayerNorm of its own (a gain and a bias for each of `width` features).
    """
