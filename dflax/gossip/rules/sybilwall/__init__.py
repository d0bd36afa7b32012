"""SybilWall: what it makes of its neighbours, and the records that it passes on."""
