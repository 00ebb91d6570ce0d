"""Vision and audio towers: their parts by family, and which architecture has which."""
