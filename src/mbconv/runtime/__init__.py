"""Running a network on pictures: one path for prediction and for evaluation."""
