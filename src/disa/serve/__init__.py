"""Images over HTTP: requests are checked, drawn together where they fit together, and answered as OpenAI's API does."""
