"""An OpenAI-compatible completion server."""
