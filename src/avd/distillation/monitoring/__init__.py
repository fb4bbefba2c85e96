"""What a distillation run measures of itself while it trains, and what follows from it."""
