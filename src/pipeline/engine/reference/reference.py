#!/usr/bin/env python3
"""Writes vectors.json: what Hugging Face transformers answers with the tests' tiny random models.

    python3 -m venv v && v/bin/pip install torch transformers && v/bin/python reference.py

The weights are numbers of a formula that the Rust tests repeat bit for bit, so no weight is stored:
number i of a tensor is splitmix64(fnv1a64(name) + i), its upper 24 bits as a fraction, less a half,
times the tensor's scale; norms are one plus that.
"""
import json
import pathlib

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT = [(7 * i * i + 3 * i + 11) % 256 for i in range(19)]
GREEDY = 32
BASE = dict(
    vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
MODELS = {
    "llama": dict(BASE, model_type="llama", rope_theta=10000.0),
    "llama3-tied": dict(BASE, model_type="llama", rope_theta=500000.0, rope_scaling=LLAMA3,
                        tie_word_embeddings=True),
    "mistral": dict(BASE, model_type="mistral", rope_theta=1000000.0, head_dim=32,
                    sliding_window=None),
    "qwen2": dict(BASE, model_type="qwen2", rope_theta=1000000.0),
    "qwen3": dict(BASE, model_type="qwen3", rope_theta=1000000.0, head_dim=32,
                  attention_bias=False),
}


def numbers(name, shape):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(int(np.prod(shape)), dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    part = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    if "norm" in name:
        return (np.float32(1) + part).reshape(shape)
    scale = 1.0 if "embed" in name or "bias" in name else 0.5
    return (part * np.float32(scale)).reshape(shape)


def answer(config):
    config = dict(config)
    kind = AutoConfig.for_model(config.pop("model_type"), **config)
    kind._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(kind).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(numbers(name, tuple(weight.shape))))
        ids = torch.tensor([PROMPT])
        first = model(ids).logits[0, -1]
        gaps = []
        for _ in range(GREEDY):
            top = model(ids).logits[0, -1].topk(2)
            gaps.append(float(top.values[0] - top.values[1]))
            ids = torch.cat([ids, top.indices[:1].view(1, 1)], 1)
    greedy = ids[0, len(PROMPT):].tolist()
    print(len(set(greedy)), "different tokens, least gap", min(gaps))
    return dict(greedy=greedy, logits=[round(float(x), 5) for x in first[:16]])


vectors = {name: dict(config=config, **answer(config)) for name, config in MODELS.items()}
path = pathlib.Path(__file__).with_name("vectors.json")
path.write_text(json.dumps(dict(prompt=PROMPT, models=vectors), indent=1) + "\n")
