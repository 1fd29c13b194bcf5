"""The only border with transformers, PEFT and accelerate: loading, training, measuring."""
