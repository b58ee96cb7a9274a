"""Calls a buyer (or any provider) with the real `openai` and `anthropic` libraries.

    BASE_URL=http://127.0.0.1:5005 CHAT_MODEL=id MESSAGES_MODEL=id .venv/bin/python drive.py

EMBED_MODEL=id also checks completions and embeddings, for which CHAT_MODEL has to be sold in chat.
MARKET=1 also checks what only a buyer adds: the cost, the typed error of an unknown model, any
dialect for any model. LABEL stands before each check's name.
Prints one line a check, `PASS name` or `FAIL name: why`; exits 1 when one failed.
"""

import concurrent.futures
import json
import os
import sys

import anthropic
import openai

BASE = os.environ["BASE_URL"]
CHAT = os.environ["CHAT_MODEL"]
MESSAGES = os.environ["MESSAGES_MODEL"]
EMBED = os.environ.get("EMBED_MODEL")
MARKET = os.environ.get("MARKET") == "1"
ASK = [{"role": "user", "content": "Say something."}]
READ = [{"role": "user", "content": "read hello.txt and tell me the secret word"}]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
WORD = "the secret word is PLUMBUS"

chat = openai.OpenAI(base_url=f"{BASE}/v1", api_key="local", max_retries=0, timeout=60)
claude = anthropic.Anthropic(base_url=BASE, api_key="local", max_retries=0, timeout=60)


def openai_whole():
    answer = chat.chat.completions.create(model=CHAT, messages=ASK)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0
    assert answer.model == CHAT, answer.model
    if MARKET:
        assert answer.usage.model_extra["cost"] > 0


def openai_stream():
    options = {"include_usage": True}
    stream = chat.chat.completions.create(
        model=CHAT, messages=ASK, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "東京" in text and len(chunks) > 10, text
    usage = [c.usage for c in chunks if c.usage]
    assert len(usage) == 1 and usage[0].completion_tokens > 10
    if MARKET:
        assert usage[0].model_extra["cost"] > 0


def openai_tools():
    tools = [{"type": "function", "function": {"name": "read", "parameters": SCHEMA}}]
    answer = chat.chat.completions.create(model=CHAT, messages=READ, tools=tools)
    call = answer.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"path": "hello.txt"}
    turn = answer.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": WORD}
    answer = chat.chat.completions.create(model=CHAT, messages=[*READ, turn, result], tools=tools)
    assert "PLUMBUS" in answer.choices[0].message.content


def openai_models():
    assert CHAT in [m.id for m in chat.models.list()]


def openai_parallel():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: openai_whole(), range(32)))


def openai_completions():
    answer = chat.completions.create(model=CHAT, prompt="Say something.")
    assert "東京" in answer.choices[0].text and answer.usage.completion_tokens > 10
    pieces = list(chat.completions.create(model=CHAT, prompt="Say something.", stream=True))
    assert "東京" in "".join(p.choices[0].text for p in pieces if p.choices)


def openai_embeddings():
    answer = chat.embeddings.create(model=EMBED, input=["one two three", "four"])
    assert [len(d.embedding) for d in answer.data] == [2, 2]
    assert answer.usage.prompt_tokens == 4, answer.usage


def openai_unknown_model():
    try:
        chat.chat.completions.create(model="nobody/sells-this", messages=ASK)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.code
    else:
        raise AssertionError("no error")


def anthropic_whole():
    answer = claude.messages.create(model=MESSAGES, max_tokens=512, messages=ASK)
    assert answer.content[0].text and answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0 and answer.model == MESSAGES


def anthropic_stream():
    with claude.messages.stream(model=MESSAGES, max_tokens=512, messages=ASK) as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert "東京" in "".join(pieces) and len(pieces) > 10
    assert last.usage.output_tokens > 10 and last.stop_reason == "end_turn"


def anthropic_tools():
    tools = [{"name": "read", "input_schema": SCHEMA}]
    with claude.messages.stream(
        model=MESSAGES, max_tokens=512, messages=READ, tools=tools
    ) as stream:
        answer = stream.get_final_message()
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.input == {"path": "hello.txt"} and answer.stop_reason == "tool_use"
    turn = {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WORD}
    answer = claude.messages.create(
        model=MESSAGES,
        max_tokens=512,
        messages=[*READ, turn, {"role": "user", "content": [result]}],
        tools=tools,
    )
    assert "PLUMBUS" in answer.content[0].text


def openai_responses_whole():
    answer = chat.responses.create(model=CHAT, input="Say something.", store=False)
    assert "東京" in answer.output_text and answer.status == "completed"
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 10
    assert answer.model == CHAT, answer.model


def openai_responses_stream():
    with chat.responses.stream(model=CHAT, input="Say something.") as stream:
        events = list(stream)
        last = stream.get_final_response()
    assert "東京" in last.output_text and last.usage.output_tokens > 10
    assert len([e for e in events if e.type == "response.output_text.delta"]) > 10


def openai_responses_tools():
    tools = [{"type": "function", "name": "read", "parameters": SCHEMA, "strict": False}]
    answer = chat.responses.create(model=CHAT, input=READ, tools=tools)
    call = next(item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"path": "hello.txt"}
    turn = call.model_dump(include={"type", "call_id", "name", "arguments"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": WORD}
    answer = chat.responses.create(model=CHAT, input=[*READ, turn, result], tools=tools)
    assert "PLUMBUS" in answer.output_text


def anthropic_count_tokens():
    counted = claude.messages.count_tokens(model=MESSAGES, messages=ASK)
    assert 3 <= counted.input_tokens < 30, counted


def anthropic_unknown_model():
    try:
        claude.messages.create(model="nobody/sells-this", max_tokens=16, messages=ASK)
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
    else:
        raise AssertionError("no error")


CHECKS = [
    openai_whole, openai_stream, openai_tools, openai_models, openai_parallel,
    anthropic_whole, anthropic_stream, anthropic_tools,
]
if EMBED:
    CHECKS += [openai_completions, openai_embeddings]
if MARKET:
    CHECKS += [openai_unknown_model, anthropic_unknown_model, anthropic_count_tokens]
    CHECKS += [openai_responses_whole, openai_responses_stream, openai_responses_tools]

failed = 0
for check in CHECKS:
    name = "python " + os.environ.get("LABEL", "") + check.__name__.replace("_", " ")
    try:
        check()
        print(f"PASS {name}")
    except Exception as error:  # any failure is a row of the table, not the end of it
        failed += 1
        why = " ".join(str(error).split())[:200]
        print(f"FAIL {name}: {type(error).__name__} {why}")
sys.exit(1 if failed else 0)
