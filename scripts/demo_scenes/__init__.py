"""Drawn street scenes in the look and with the label ids of Cityscapes."""
