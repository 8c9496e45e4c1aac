"""The Triton kernels and their launchers; imported only once a CUDA tensor (or the interpreter) needs one."""
