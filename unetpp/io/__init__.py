"""Opens images of any supported format behind one protocol; knows nothing about models or outputs."""
