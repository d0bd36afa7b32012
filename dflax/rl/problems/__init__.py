"""Problems of decisions under chance: lot sizing and a frozen lake, in two stages."""
