"""Renders chats as vLLM does; run by the Python of the vLLM environment.

Reads {"folder", "chats": [{"messages", "tools", "generate"}]} on standard input, writes the
prompts, and each prompt's tokens, as JSON.
"""

import importlib
import json
import sys

asked = json.load(sys.stdin)
tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(asked["folder"])
prompts = [
    tokenizer.apply_chat_template(
        chat["messages"], tools=chat.get("tools"), add_generation_prompt=chat["generate"], tokenize=False
    )
    for chat in asked["chats"]
]
json.dump({"prompts": prompts, "tokens": [tokenizer.tokenize(prompt) for prompt in prompts]}, sys.stdout)
