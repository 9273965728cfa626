"""Inference as transformations: from programs to programs that denote the same measure."""
