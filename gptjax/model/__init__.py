"""The GPT as pure functions of (model_config, params, tokens)."""
