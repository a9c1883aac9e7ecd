"""What a dataset's columns and labels mean to a model: one rule for training and evaluation."""
