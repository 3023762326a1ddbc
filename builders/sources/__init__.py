"""Where weights come from: one file per kind of checkpoint, one way to read them all."""
