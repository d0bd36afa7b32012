"""Problems whose optimum is known."""
