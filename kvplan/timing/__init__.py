"""What one engine step must do (work), what a card charges for it (costs), and profiles of the charges."""
