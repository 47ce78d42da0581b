"""The engine that runs GGUF models with llama.cpp, on the device that library was built for."""
