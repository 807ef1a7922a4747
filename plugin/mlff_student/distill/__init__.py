"""Distillation: molecules, MD by a teacher, a labelled dataset and the training of a student."""
