"""The Triton kernels and their launchers; nothing here is imported before a CUDA tensor (or the interpreter) needs it."""
