"""Other programs' formats: Hugging Face and llama.cpp."""
