"""The course: ten exercises in the maths of fine-tuning, graded."""
