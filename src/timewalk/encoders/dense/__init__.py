"""Encoders with a head for dense tasks: networks that segment and detect.

Plain modules without training code: fine-tuning trains them, evaluations load them
(:mod:`timewalk.encoders.dense.files`).
"""

from timewalk.encoders.dense.files import finetuned_title, from_spec, load_network, save_network

__all__ = ["finetuned_title", "from_spec", "load_network", "save_network"]
