"""Computing only what matters: what to leave out, and how that is learned and kept."""
