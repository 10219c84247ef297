"""How long tests wait."""

# For what always comes, on a slow and busy machine too: only a hang lasts longer.
HANG_S = 600
