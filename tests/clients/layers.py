"""A model whose layers three processes compute, asked through the real `openai` and `anthropic`
libraries, and what everybody's ledger says afterwards.

    BASE_URL=http://127.0.0.1:5005 MODEL=id NODE=path/to/node .venv/bin/python layers.py \\
        BUYER HEAD STAGE…

The data directories come as arguments. Prints `PASS name` or `FAIL name: why`, as drive.py does.
"""

import json
import os
import subprocess
import sys
import time

import anthropic
import openai

BASE, MODEL, NODE = os.environ["BASE_URL"], os.environ["MODEL"], os.environ["NODE"]
BUYER, HEAD, *STAGES = sys.argv[1:]
ASK = [{"role": "user", "content": "Count some sheep."}]
TOKENS = 32

chat = openai.OpenAI(base_url=f"{BASE}/v1", api_key="local", max_retries=0, timeout=60)
claude = anthropic.Anthropic(base_url=BASE, api_key="local", max_retries=0, timeout=60)
costs = []
texts = []


def openai_stream():
    chunks = list(
        chat.chat.completions.create(
            model=MODEL,
            messages=ASK,
            stream=True,
            temperature=0,
            max_tokens=TOKENS,
            stream_options={"include_usage": True},
        )
    )
    texts.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
    usage = [c.usage for c in chunks if c.usage]
    assert len(chunks) > 10 and len(texts[-1]) == TOKENS, texts[-1]
    assert len(usage) == 1 and usage[0].completion_tokens == TOKENS, usage
    costs.append(usage[0].model_extra["cost"])


def openai_whole():
    answer = chat.chat.completions.create(
        model=MODEL, messages=ASK, temperature=0, max_tokens=TOKENS
    )
    assert answer.choices[0].message.content == texts[0], answer
    assert answer.choices[0].finish_reason == "length", answer
    costs.append(answer.usage.model_extra["cost"])


def anthropic_stream():
    with claude.messages.stream(
        model=MODEL, messages=ASK, max_tokens=TOKENS, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert text == texts[0], text
    assert answer.usage.output_tokens == TOKENS and answer.stop_reason == "max_tokens", answer


def rows(home, role):
    """Attempt id and micro-USD of what this node bought or sold; none while something is open."""
    command = [NODE, "ledger", "requests", "--json", "--limit", "1000", "--role", role]
    shown = subprocess.run([*command, "--data-dir", home], check=True, capture_output=True)
    found = [row for row in json.loads(shown.stdout) if row.get("attempt_id")]
    billed = {row["attempt_id"]: row.get("billed_micro_usd") for row in found}
    return None if None in billed.values() else billed


def ledgers():
    end = time.monotonic() + 60
    while True:
        asked, sold = rows(BUYER, "buy"), rows(HEAD, "sell")
        ordered, computed = rows(HEAD, "buy"), [rows(stage, "sell") for stage in STAGES]
        if None not in (asked, sold, ordered, *computed):
            together = {attempt: cost for stage in computed for attempt, cost in stage.items()}
            if asked == sold and ordered == together and len(asked) == 3:
                break
        assert time.monotonic() < end, (asked, sold, ordered, computed)
        time.sleep(0.2)
    # Before a stage serves it computes rows that the head knows the results of, once, for pay.
    assert len(ordered) == (len(asked) + 1) * len(STAGES), ordered
    assert all(cost > 0 for cost in [*asked.values(), *ordered.values()]), (asked, ordered)
    # What answers said that they cost is what was booked.
    booked = sorted(asked.values())
    assert all(round(cost * 1e6) in booked for cost in costs), (costs, booked)
    for home in (BUYER, HEAD, *STAGES):
        subprocess.run([NODE, "ledger", "verify", "--data-dir", home], check=True, capture_output=True)
    sums = sum(asked.values()), sum(ordered.values())
    print(f"layers: the buyer paid {sums[0]}, the stages earned {sums[1]} micro-USD", file=sys.stderr)


failed = False
for check in (openai_stream, openai_whole, anthropic_stream, ledgers):
    try:
        check()
        print(f"PASS layers of three processes, {check.__name__.replace('_', ' ')}")
    except Exception as error:  # a driver goes on, whatever went wrong
        failed = True
        print(f"FAIL layers of three processes, {check.__name__}: {error!r}")
sys.exit(failed)
