"""Every client dialect against every upstream dialect, with the real `openai` and `anthropic`.

    BASE_URL=http://127.0.0.1:5005 MODELS='{"chat":"id","messages":"id","responses":"id"}' \\
        .venv/bin/python matrix.py

MODELS names, for each upstream dialect, the model that is sold in it alone; `id-parallel`,
`id-thinking`, `id-long` and `id-refusing` behave as their names say. Prints one line a cell; what
a translation leaves out must be exactly what lossy.json says, with its reason.
"""

import json
import os
import pathlib
import sys
from typing import NamedTuple

import anthropic
import openai

BASE = os.environ["BASE_URL"]
MODELS = json.loads(os.environ["MODELS"])
LOSSY = json.loads((pathlib.Path(__file__).parent / "lossy.json").read_text())
CELLS = ["text", "tools", "parallel", "images", "thinking", "long", "refusal"]
MODEL_OF = {"parallel": "-parallel", "thinking": "-thinking", "long": "-long", "refusal": "-refusing"}
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}},
    "required": ["path"],
    "additionalProperties": False,
}
WORD = "the secret word is PLUMBUS"
STOP = "never said"

dropped = ""


def note(response):
    global dropped
    dropped = response.headers.get("x-souk-dropped", "")


hooks = {"response": [note]}
openai_client = openai.OpenAI(
    base_url=f"{BASE}/v1", api_key="local", max_retries=0, timeout=60,
    http_client=openai.DefaultHttpxClient(event_hooks=hooks),
)
anthropic_client = anthropic.Anthropic(
    base_url=BASE, api_key="local", max_retries=0, timeout=60,
    http_client=anthropic.DefaultHttpxClient(event_hooks=hooks),
)


class Answer(NamedTuple):
    text: str
    thinking: str
    calls: list  # (id, name, arguments)
    stop: str  # end, tools, length or refusal
    input: int
    output: int
    turn: list  # what the client sends back as the assistant's turn


class Chat:
    stops = {"stop": "end", "tool_calls": "tools", "length": "length", "content_filter": "refusal"}

    @staticmethod
    def user(text, image):
        if not image:
            return [{"role": "user", "content": text}]
        url = {"url": f"data:image/png;base64,{PNG}"}
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
        return [{"role": "user", "content": parts}]

    @staticmethod
    def more(cell):
        function = {"name": "read", "description": "Reads a file.", "parameters": SCHEMA}
        if cell == "tools":
            function["strict"] = True
        return {
            "tools": {"tools": [{"type": "function", "function": function}]},
            "parallel": {"tools": [{"type": "function", "function": function}]},
            "thinking": {"reasoning_effort": "high"},
            "long": {"stop": [STOP], "max_tokens": 300},
        }.get(cell, {})

    @staticmethod
    def results(calls):
        return [{"role": "tool", "tool_call_id": id, "content": WORD} for id, *_ in calls]

    @classmethod
    def ask(cls, model, turns, stream, more):
        create = openai_client.chat.completions.create
        if not stream:
            answer = create(model=model, messages=turns, **more)
            message = answer.choices[0].message.model_dump(exclude_none=True)
            stop, usage = answer.choices[0].finish_reason, answer.usage
        else:
            message, stop, usage = {"role": "assistant", "content": ""}, None, None
            options = {"include_usage": True}
            for chunk in create(model=model, messages=turns, stream=True, stream_options=options, **more):
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    delta = choice.delta.model_dump(exclude_none=True)
                    message["content"] += delta.get("content", "")
                    if "reasoning_content" in delta:
                        message.setdefault("reasoning_content", "")
                        message["reasoning_content"] += delta["reasoning_content"]
                    for piece in delta.get("tool_calls", []):
                        calls = message.setdefault("tool_calls", [])
                        if piece["index"] == len(calls):
                            calls.append({"id": piece["id"], "type": "function",
                                          "function": {"name": piece["function"]["name"], "arguments": ""}})
                        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
                    stop = choice.finish_reason or stop
        calls = [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
                 for c in message.get("tool_calls", [])]
        thinking = message.pop("reasoning_content", "")
        assert usage.model_extra["cost"] > 0, usage
        return Answer(message.get("content") or "", thinking, calls, cls.stops[stop],
                      usage.prompt_tokens, usage.completion_tokens, [message])


class Messages:
    stops = {"end_turn": "end", "tool_use": "tools", "max_tokens": "length", "refusal": "refusal"}

    @staticmethod
    def user(text, image):
        if not image:
            return [{"role": "user", "content": text}]
        source = {"type": "base64", "media_type": "image/png", "data": PNG}
        parts = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        return [{"role": "user", "content": parts}]

    @staticmethod
    def more(cell):
        tool = {"name": "read", "description": "Reads a file.", "input_schema": SCHEMA}
        return {
            "tools": {"tools": [tool]},
            "parallel": {"tools": [tool]},
            "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "long": {"stop_sequences": [STOP]},
        }.get(cell, {})

    @staticmethod
    def results(calls):
        block = lambda id: {"type": "tool_result", "tool_use_id": id, "content": WORD}
        return [{"role": "user", "content": [block(id) for id, *_ in calls]}]

    @classmethod
    def ask(cls, model, turns, stream, more):
        more = {"max_tokens": 2048, **more}
        if stream:
            with anthropic_client.messages.stream(model=model, messages=turns, **more) as events:
                answer = events.get_final_message()
        else:
            answer = anthropic_client.messages.create(model=model, messages=turns, **more)
        joined = lambda kind, key: "".join(getattr(b, key) for b in answer.content if b.type == kind)
        calls = [(b.id, b.name, b.input) for b in answer.content if b.type == "tool_use"]
        turn = [b.model_dump(include={"type", "id", "name", "input", "text", "thinking", "signature"})
                for b in answer.content]
        usage = answer.usage
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        return Answer(joined("text", "text"), joined("thinking", "thinking"), calls,
                      cls.stops[answer.stop_reason], usage.input_tokens + cached,
                      usage.output_tokens, [{"role": "assistant", "content": turn}])


class Responses:
    @staticmethod
    def user(text, image):
        if not image:
            return [{"role": "user", "content": text}]
        url = f"data:image/png;base64,{PNG}"
        parts = [{"type": "input_text", "text": text},
                 {"type": "input_image", "image_url": url, "detail": "auto"}]
        return [{"role": "user", "content": parts}]

    @staticmethod
    def more(cell):
        tool = {"type": "function", "name": "read", "parameters": SCHEMA, "strict": cell == "tools"}
        return {
            "tools": {"tools": [tool]},
            "parallel": {"tools": [tool]},
            "thinking": {"reasoning": {"effort": "high", "summary": "auto"}},
            "long": {"max_output_tokens": 300},
        }.get(cell, {})

    @staticmethod
    def results(calls):
        return [{"type": "function_call_output", "call_id": id, "output": WORD} for id, *_ in calls]

    @classmethod
    def ask(cls, model, turns, stream, more):
        create = openai_client.responses.create
        if stream:
            events = list(create(model=model, input=turns, store=False, stream=True, **more))
            assert [e.sequence_number for e in events] == list(range(len(events)))
            answer = events[-1].response
            said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
            assert said == answer.output_text, said
        else:
            answer = create(model=model, input=turns, store=False, **more)
        calls = [(i.call_id, i.name, json.loads(i.arguments))
                 for i in answer.output if i.type == "function_call"]
        thinking = "".join(s.text for i in answer.output if i.type == "reasoning" for s in i.summary)
        stop = "tools" if calls else "end"
        if answer.status == "incomplete":
            why = answer.incomplete_details.reason
            stop = {"max_output_tokens": "length", "content_filter": "refusal"}[why]
        turn = [i.model_dump(exclude_none=True) for i in answer.output]
        return Answer(answer.output_text, thinking, calls, stop,
                      answer.usage.input_tokens, answer.usage.output_tokens, turn)


CLIENTS = {"chat": Chat, "messages": Messages, "responses": Responses}


def loss(client, upstream, cell):
    return [row for row in LOSSY if client in row["clients"] and upstream in row["upstreams"]
            and cell in row["cells"]]


def run(client, upstream, cell, stream):
    """One cell; gives what was lost and why."""
    dialect = CLIENTS[client]
    model = MODELS[upstream] + MODEL_OF.get(cell, "")
    lost = loss(client, upstream, cell)
    more = dialect.more(cell)
    prompt = "read hello.txt and tell me the secret word" if cell in ("tools", "parallel") else "Say something."
    turns = dialect.user(prompt, cell == "images")
    answer = dialect.ask(model, turns, stream, more)
    assert dropped == ", ".join(row["dropped"] for row in lost), f"dropped {dropped!r}"
    assert answer.input > 0 and answer.output > 0, answer
    if cell in ("tools", "parallel"):
        wanted = 1 if cell == "tools" else 3
        assert answer.stop == "tools" and len(answer.calls) == wanted, answer
        assert len({id for id, *_ in answer.calls}) == wanted, "ids differ"
        assert all(c[1:] == ("read", {"path": "hello.txt"}) for c in answer.calls), answer.calls
        turns = [*turns, *answer.turn, *dialect.results(answer.calls)]
        answer = dialect.ask(model, turns, stream, more)
        assert "PLUMBUS" in answer.text and answer.stop == "end", answer
    elif cell == "images":
        assert answer.text == f"I see an image: image/png, {len(PNG)} characters of base64", answer.text
    else:
        assert "東京" in answer.text, answer.text
    wanted = {"long": "length", "refusal": "refusal"}.get(cell, "end")
    assert answer.stop == wanted, answer.stop
    assert answer.thinking == ("Let me see." if cell == "thinking" else ""), answer.thinking
    return "; ".join(f"without {row['dropped']}: {row['why']}" for row in lost)


failed = 0
for client in CLIENTS:
    for upstream in CLIENTS:
        for cell in CELLS:
            for stream in (False, True):
                name = f"python {client} -> {upstream} {cell} {'stream' if stream else 'whole'}"
                try:
                    lost = run(client, upstream, cell, stream)
                    print(f"PASS {name}" + (f" ({lost})" if lost else ""), flush=True)
                except Exception as error:  # a row of the table, not the end of it
                    failed += 1
                    why = " ".join(str(error).split())[:300]
                    print(f"FAIL {name}: {type(error).__name__} {why}", flush=True)
sys.exit(1 if failed else 0)
