"""Makes the tiny chat model of the demo: its text, its tokenizer, its training, its exam."""
