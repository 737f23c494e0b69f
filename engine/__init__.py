"""The commands: train, evaluate, auto-label. The only package that joins the others."""
