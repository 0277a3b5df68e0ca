"""Plain models written as GGUF files, the format of llama.cpp."""
