"""Models in GGUF files, the format of llama.cpp."""

from quietstar.base.gguf.model import gguf_config, gguf_model, gguf_tokenizer, unpacked

__all__ = ["gguf_config", "gguf_model", "gguf_tokenizer", "unpacked"]
