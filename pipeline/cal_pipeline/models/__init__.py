"""Loads models: checkpoint directory or hub id in, model and processor out.

checkpoint judges a directory before anything is loaded, loading loads and names weights, precision tells how exactly a
forward computes, special_cases lists what no rule serves. assemble and mini_gemini make models that transformers does
not have ready. Read loading first.
"""
