"""Clips and where they come from: files, sampling, augmentation, few-shot draws."""
