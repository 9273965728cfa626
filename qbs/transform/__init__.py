"""Transformations: from programs to programs that denote the same measure."""
