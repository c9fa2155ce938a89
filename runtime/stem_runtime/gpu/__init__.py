"""The engine on a graphics card. Needs torch, and imports it; nothing else of the runtime does."""
