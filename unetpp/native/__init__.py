"""Makes machine code of a network for the CPU at hand and runs it, all layers of a node in one pass over memory.

Knows the grid, its weights as NumPy arrays and LLVM; no torch, no image format and no tile plan. The engine around it
is `unetpp.engine.native`.
"""
