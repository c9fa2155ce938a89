"""Everything that fills the terminal, or lies over what does."""
