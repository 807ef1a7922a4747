"""From a teacher to a student: molecules, teacher MD, dataset, training. One recipe drives all."""
