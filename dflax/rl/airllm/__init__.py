"""AirLLM: fine-tuning over the air, with ranks that a diffusion policy chooses."""

__all__: list[str] = []  # what users need of it, a package above imports
