"""Three small services built on reliakit, and a demo that breaks things under them."""
