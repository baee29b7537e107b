"""The experiment on visual domains: pictures embedded and curated, a pixel model of each subset, bits per pixel."""
