"""Mini-Gemini (arXiv 2403.18814), which transformers lacks, in transformers' own conventions.

registry makes the Auto classes know it; modeling, configuration, processor and text are the model; convert, parts,
tensor_names and tensor_files make one from published checkpoints (`cal-convert-mgm`). Read modeling first.
"""
