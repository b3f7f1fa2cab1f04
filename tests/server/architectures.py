"""The architectures that the torch engine serves; a tiny model of each is made for the tests."""

ARCHITECTURES = (
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
)
