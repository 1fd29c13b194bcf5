"""A function for each of PEFT's tuner types: (blueprint, configuration) → change."""
