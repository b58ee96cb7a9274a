"""Reads /metrics with the parser of Prometheus' own Python client.

usage: metrics.py NAME=URL...
"""

import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

for pair in sys.argv[1:]:
    role, url = pair.split("=", 1)
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    ours = [f for f in families if f.name.startswith("souk_")]
    silent = [f.name for f in ours if not f.documentation]
    untyped = [f.name for f in ours if f.type == "unknown"]
    assert len(ours) >= 10, [f.name for f in families]
    assert not silent and not untyped, (silent, untyped)
    print(f"{role}: {len(families)} metrics, {sum(len(f.samples) for f in families)} samples")
