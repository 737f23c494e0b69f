"""Procedural street scenes in the look and the label ids of Cityscapes; drawn by ``scripts/make_demo_data.py``."""
