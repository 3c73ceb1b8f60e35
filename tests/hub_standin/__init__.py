"""A local stand-in of the Hugging Face Hub for tests: see server.py."""
