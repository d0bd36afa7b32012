"""AirLLM: fine-tuning over the air, with ranks that a diffusion policy chooses."""
